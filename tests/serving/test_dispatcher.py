"""The queue between routes and worker, with a worker that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from max.pipelines.context import GenerationStatus, TokenBuffer
from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.modeling.types import RequestID

from max_zimage.pipeline.context import ZImageContext
from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.errors import ApiError
from max_zimage.serving.job import Job
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.worker.messages import Progress, progress_output


class FakeWorker:
    """A proxy that yields what a test says."""

    def __init__(self) -> None:
        self.given: dict[str, asyncio.Queue[GenerationOutput | None]] = {}
        self.cancelled: list[str] = []

    async def stream(self, request: RequestID, context: ZImageContext) -> AsyncIterator[Any]:
        said: asyncio.Queue[GenerationOutput | None] = asyncio.Queue()
        self.given[str(request)] = said

        async def answers() -> AsyncIterator[Any]:
            try:
                while (output := await said.get()) is not None:
                    yield [output], None
                    if output.is_done:
                        return
            except BaseException:
                self.cancel(request)
                raise

        return answers()

    def cancel(self, request: RequestID) -> None:
        self.cancelled.append(str(request))

    def say(self, name: str, step: int) -> None:
        progress = Progress(step=step, steps=4, seconds={"steps": 1.0}, batch=1, graphs={"hits": 1})
        self.given[name].put_nowait(progress_output(RequestID(name), progress))

    def finish(self, name: str) -> None:
        final = GenerationOutput(request_id=RequestID(name), final_status=GenerationStatus.END_OF_SEQUENCE, output=[])
        self.given[name].put_nowait(final)

    def fail(self, name: str) -> None:
        self.given[name].put_nowait(None)


def context(name: str) -> ZImageContext:
    return ZImageContext(tokens=TokenBuffer(np.arange(3)), request_id=RequestID(name))


def dispatcher(**options: Any) -> Dispatcher:
    usual: dict[str, Any] = {"queue": 2, "in_worker": 2, "seconds": 60.0, "metrics": Metrics()}
    return Dispatcher(**usual | options)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def outcome(queue: Dispatcher, job: Job) -> str:
    """What becomes of a request: done, or the code of its error."""
    try:
        async for event in queue.events(job):
            if isinstance(event, GenerationOutput):
                return "done"
    except ApiError as error:
        return f"{error.status} {error.code}"
    raise AssertionError("neither an answer nor an error")


def run(test: Callable[[Dispatcher, Any], Awaitable[None]], **options: Any) -> None:
    async def body() -> None:
        queue, worker = dispatcher(**options), FakeWorker()
        queue.attach(worker)  # type: ignore[arg-type]
        await test(queue, worker)

    asyncio.run(body())


def test_the_worker_gets_no_more_than_it_can_take_and_the_queue_its_limit() -> None:
    async def body(queue: Dispatcher, worker: FakeWorker) -> None:
        jobs = [queue.submit(context(name), name) for name in "abcd"]
        await settled()
        assert set(worker.given) == {"a", "b"}
        assert [queue.place(job) for job in jobs] == [0, 0, 0, 1]
        with pytest.raises(ApiError, match="2 requests are waiting, as many as this server allows"):
            queue.submit(context("e"), "e")
        worker.say("a", 0)
        worker.finish("a")
        assert await outcome(queue, jobs[0]) == "done"
        await settled()
        assert set(worker.given) == {"a", "b", "c"}
        worker.fail("b")
        assert await outcome(queue, jobs[1]) == "500 failed"

    run(body)


def test_an_id_is_taken_once() -> None:
    async def body(queue: Dispatcher, worker: FakeWorker) -> None:
        queue.submit(context("a"), "a")
        with pytest.raises(ApiError, match="a request with the id a is not done yet"):
            queue.submit(context("a"), "a")

    run(body)


def test_a_dead_worker_fails_what_it_had_begun_and_nothing_else() -> None:
    async def body(queue: Dispatcher, worker: FakeWorker) -> None:
        jobs = [queue.submit(context(name), name) for name in "abcd"]
        await settled()
        worker.say("a", 0)
        await settled()
        queue.detach()
        assert not queue.is_ready
        assert await outcome(queue, jobs[0]) == "502 worker_died"
        second = FakeWorker()
        queue.attach(second)  # type: ignore[arg-type]
        await settled()
        assert list(second.given) == ["b", "c"]  # in their old order
        for name, job in zip("bcd", jobs[1:], strict=True):
            await settled()
            second.finish(name)
            assert await outcome(queue, job) == "done"
        assert queue.idle.is_set()

    run(body)


def test_to_cancel_what_is_done_does_nothing_to_a_later_request_of_the_same_id() -> None:
    async def body(queue: Dispatcher, worker: FakeWorker) -> None:
        first = queue.submit(context("a"), "name")
        await settled()
        worker.finish("a")
        assert await outcome(queue, first) == "done"
        second = queue.submit(context("b"), "name")
        await settled()
        queue.cancel(first, "client")
        assert queue.find("name") is second
        worker.finish("b")
        assert await outcome(queue, second) == "done"
        assert worker.cancelled == []

    run(body)


def test_who_leaves_cancels() -> None:
    async def body(queue: Dispatcher, worker: FakeWorker) -> None:
        job = queue.submit(context("a"), "a")
        task = asyncio.create_task(outcome(queue, job))
        await settled()
        task.cancel()
        await settled()
        assert worker.cancelled == ["a"]
        assert queue.find("a") is None

    run(body)


@pytest.mark.parametrize(("begun", "expected"), [(True, "400 time_limit"), (False, "429 time_limit")])
def test_time_is_up(begun: bool, expected: str) -> None:
    async def body(queue: Dispatcher, worker: FakeWorker) -> None:
        job = queue.submit(context("a"), "a")
        await settled()
        if begun:
            worker.say("a", 0)
        assert await outcome(queue, job) == expected
        await settled()
        assert worker.cancelled == ["a"]

    run(body, seconds=0.05)


def test_closing_rejects_what_waits_and_lets_finish_what_is_drawn() -> None:
    async def body(queue: Dispatcher, worker: FakeWorker) -> None:
        drawn, given, waits = (queue.submit(context(name), name) for name in "abc")
        await settled()
        worker.say("a", 0)
        await settled()
        queue.close()
        with pytest.raises(ApiError, match="being shut down"):
            queue.submit(context("d"), "d")
        assert await outcome(queue, given) == "503 shutting_down"
        assert await outcome(queue, waits) == "503 shutting_down"
        worker.finish("a")
        assert await outcome(queue, drawn) == "done"
        await asyncio.wait_for(queue.idle.wait(), 1)

    run(body)
