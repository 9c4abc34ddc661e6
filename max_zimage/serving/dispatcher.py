"""Between the routes and the worker: the queue, what is told about each request, and what becomes of it.

Requests wait here, not in the worker, which gets only as many as fill one batch and the next: what waits here
survives the worker's death, and knows its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.request.open_responses import OutputImageContent
from max.serve.worker_interface import ModelWorkerProxy, RequestQueueFull

from max_zimage.host.words import counted
from max_zimage.pipeline.context import ZImageContext
from max_zimage.serving.errors import ApiError, duplicate_id
from max_zimage.serving.job import Change, Event, Job
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.worker.messages import read_failure, read_progress

_log = logging.getLogger("max_zimage.serving")

CancelledBy = Literal["client", "api", "timeout", "shutdown"]
_REASONS = {
    "client": "its client hung up",
    "api": "it was cancelled by its id",
    "timeout": "it took too long",
    "shutdown": "the server is being shut down",
}


def ended_by(by: CancelledBy) -> ApiError:
    """What whoever waits for a request is told when it is ended early."""
    status, code = (503, "shutting_down") if by == "shutdown" else (499, "cancelled")
    return ApiError(status, code, f"the request was ended: {_REASONS[by]}")


class Dispatcher:
    """All requests of a server.

    Args:
        queue: Requests that may wait.
        in_worker: Requests that the worker may have at a time.
        seconds: From when a request is queued to its last picture.
        metrics: Where it counts.

    Attributes:
        observers: Called at every change of a request, with what has changed; they may not wait.
    """

    def __init__(self, *, queue: int, in_worker: int, seconds: float, metrics: Metrics) -> None:
        self._limit, self._in_worker, self._seconds, self._metrics = queue, in_worker, seconds, metrics
        self._waiting: deque[Job] = deque()
        self._given: dict[str, Job] = {}
        self._proxy: ModelWorkerProxy[Any, Any] | None = None
        self._closing = False
        self.observers: list[Callable[[Job, Change], None]] = []
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def is_ready(self) -> bool:
        """Whether there is a worker, and requests are taken."""
        return self._proxy is not None and not self._closing

    @property
    def is_closing(self) -> bool:
        """Whether the server ends."""
        return self._closing

    @property
    def jobs(self) -> list[Job]:
        """All requests that are not done."""
        return [*self._given.values(), *self._waiting]

    def find(self, name: str) -> Job | None:
        """A request that is not done, by its id."""
        waiting = next((job for job in self._waiting if job.name == name), None)
        return self._given.get(name) or waiting

    def place(self, job: Job) -> int:
        """How many requests come before one that waits; 0 for one that does not."""
        return self._waiting.index(job) if job in self._waiting else 0

    def check_room(self) -> None:
        """Refuse a request if none can be taken.

        Raises:
            ApiError: 429 if the queue is full, 503 if the server is being shut down.
        """
        if self._closing:
            raise ApiError(503, "shutting_down", "the server is being shut down; ask another one")
        if len(self._waiting) >= self._limit:
            waiting = counted(len(self._waiting), "request is waiting", "requests are waiting")
            raise ApiError(
                429,
                "queue_full",
                f"{waiting}, as many as this server allows; try again later",
                headers={"Retry-After": "1"},
            )

    def submit(self, context: ZImageContext, name: str, run: str | None = None) -> Job:
        """Take a request.

        Args:
            context: What the worker gets.
            name: The id by which its client knows it.
            run: Of a request that was known before; None for a new one.

        Raises:
            ApiError: As `check_room`; 409 if the id is in use.
        """
        self.check_room()
        if self.find(name) is not None:
            raise duplicate_id(name)
        job = Job(context, name) if run is None else Job(context, name, run=run)
        self._waiting.append(job)
        self.idle.clear()
        self._tell(job, "queued")
        self._feed()
        return job

    async def events(self, job: Job) -> AsyncGenerator[Event | GenerationOutput, None]:
        """What is told about a request, up to its answer. To leave early is to cancel it.

        Raises:
            ApiError: If it is cancelled, takes too long, or the worker fails.
        """
        finished = False
        try:
            while not finished:
                async with asyncio.timeout(self._remaining(job)):
                    event = await job.events.get()
                finished = not isinstance(event, tuple)
                if isinstance(event, ApiError):
                    raise event
                yield event
        except TimeoutError:
            raise self._timed_out(job) from None
        finally:
            if not finished:
                self.cancel(job, "client")
            self._metrics.request_seconds.observe(time.monotonic() - job.arrived)

    def cancel(self, job: Job, by: CancelledBy, told: ApiError | None = None) -> None:
        """End a request early, wherever it is. Nothing happens to one that is done.

        Args:
            job: The request.
            by: Who ends it.
            told: What whoever waits for it is told; None for that it was ended, and by whom.
        """
        if job in self._waiting:
            self._waiting.remove(job)
        elif self._given.get(job.name) is job:  # and not a later request that has taken the same id
            del self._given[job.name]
            if job.pump is not None:
                job.pump.cancel()  # MAX's stream, abandoned, tells the worker
        else:
            return
        self._metrics.cancellations.labels(by).inc()
        self._end(job, told or ended_by(by))
        self._feed()

    def attach(self, proxy: ModelWorkerProxy[Any, Any]) -> None:
        """Take a worker that is ready."""
        self._proxy = proxy
        self._feed()

    def detach(self) -> None:
        """Give up a worker that died: what it had begun fails, what it had not waits again, in its old place."""
        if self._proxy is not None:
            self._proxy.cancel = lambda req_id: None  # type: ignore[method-assign]  # there is nobody to tell
        self._proxy = None
        again = []
        for job in self._given.values():
            if job.pump is not None:
                job.pump.cancel()
            if job.progress is None:
                again.append(job)
            else:
                message = (
                    "the worker process died while it drew this request, which was not tried again; the log says why"
                )
                self._end(job, ApiError(502, "worker_died", message))
        self._given.clear()
        self._waiting.extendleft(sorted(again, key=lambda job: -job.arrived))
        self._count()

    def close(self, *, running: bool = False) -> None:
        """Take no more requests, and reject those that wait; with `running`, end those that are drawn as well."""
        self._closing = True
        for job in [*self._waiting, *self._given.values()]:
            if running or job.progress is None:
                self.cancel(job, "shutdown")

    def _feed(self) -> None:
        """Hand the worker what it can take."""
        while self._proxy is not None and self._waiting and len(self._given) < self._in_worker:
            job = self._waiting.popleft()
            self._given[job.name] = job
            job.pump = asyncio.create_task(self._listen(job, self._proxy))
        self._count()

    async def _listen(self, job: Job, proxy: ModelWorkerProxy[Any, Any]) -> None:
        """Pass on what the worker says about a request. Cancelled by `cancel` and `detach`, which say the rest."""
        end: GenerationOutput | ApiError | None = None
        try:
            stream = await proxy.stream(job.context.request_id, job.context)
            async for outputs, _ in stream:
                for output in outputs:
                    if output.is_done:
                        end = output
                        self._metrics.images.inc(sum(isinstance(each, OutputImageContent) for each in output.output))
                    elif failure := read_failure(output):
                        end = ApiError(500, failure.code, failure.message)
                    else:
                        self._note(job, output)
        except RequestQueueFull:  # a dead worker takes nothing in: the request waits for the next one
            self._given.pop(job.name, None)
            self._waiting.appendleft(job)
            self._count()
            return
        except Exception:
            _log.exception("request %s: the worker's answer cannot be read", job.name)
        self._given.pop(job.name, None)
        message = f"request {job.name} failed in the worker; the server's log says why"
        self._end(job, end or ApiError(500, "failed", message))
        self._feed()

    def _note(self, job: Job, output: GenerationOutput) -> None:
        progress, previews = read_progress(output)
        metrics = self._metrics
        begins = job.progress is None
        if job.progress is None:
            metrics.waited.observe(time.monotonic() - job.arrived)
        else:
            metrics.steps.inc(progress.step - job.progress.step)
        job.progress = progress
        self._tell(job, "begun" if begins else "step")
        job.preview = previews[0] if previews else job.preview
        for result, count in progress.graphs.items():
            metrics.graph_cache.labels(result).set(count)
        for figure, count in progress.embeddings.items():
            metrics.embedding_cache.labels(figure).set(count)
        if progress.step == progress.steps:
            metrics.batch_pictures.observe(progress.batch)
            for stage, seconds in progress.seconds.items():
                metrics.stage_seconds.labels(stage).observe(seconds)
        job.events.put_nowait((progress, previews))
        self._count()

    def _end(self, job: Job, end: GenerationOutput | ApiError) -> None:
        """Say what became of a request, to whoever waits for it and to whoever asks."""
        job.end, job.ended = end, time.monotonic()
        job.events.put_nowait(end)
        self._tell(job, "ended")

    def _tell(self, job: Job, change: Change) -> None:
        for observer in self.observers:
            observer(job, change)

    def _count(self) -> None:
        running = sum(job.progress is not None for job in self._given.values())
        self._metrics.running.set(running)
        self._metrics.waiting.set(len(self._waiting) + len(self._given) - running)
        self._metrics.worker_up.set(self._proxy is not None)
        if not self._waiting and not self._given:
            self.idle.set()

    def _remaining(self, job: Job) -> float:
        return max(0.0, job.arrived + self._seconds - time.monotonic())

    def _timed_out(self, job: Job) -> ApiError:
        """The time is up: the queue's fault if the work never began, the request's size if it did."""
        begun = job.progress is not None
        where = (
            "while it was drawn; ask for fewer steps, pixels or pictures" if begun else "in the queue; try again later"
        )
        message = f"this server gives a request {self._seconds:g} s, and they were over {where}"
        headers = {} if begun else {"Retry-After": "10"}
        error = ApiError(400 if begun else 429, "time_limit", message, headers=headers)
        self.cancel(job, "timeout", error)
        return error
