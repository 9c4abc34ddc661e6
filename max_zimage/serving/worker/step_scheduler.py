"""The worker's scheduler: requests that wait together and fit share denoising steps, and one call takes one step.

MAX's `OneShotScheduler` runs one request from its beginning to its end. A step at a time, the loop around it stays
alive, progress can be told and a cancellation obeyed. A batch is what waits when the oldest waiting request begins: it
and others of the same size, schedule and guidance, up to a number of pictures. So nobody waits for company, and a
request that is overtaken is overtaken for one batch at most.

Reference: MAX serve/scheduler/one_shot_scheduler.py, whose queues and messages these are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from max.pipelines.context import BaseContextType
from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.modeling.types import PipelineInputsType, PipelineOutputType, RequestID
from max.serve.scheduler.base import SchedulerProgress
from max.serve.scheduler.one_shot_scheduler import OneShotScheduler
from max.serve.scheduler_result import SchedulerResult

from max_zimage.compile.modules import counts
from max_zimage.errors import AdapterError
from max_zimage.pipeline.bound_adapters import NotApplied
from max_zimage.pipeline.context import ZImageContext, asked_of, step_cache_of
from max_zimage.pipeline.mixed_adapters import why_apart
from max_zimage.pipeline.not_finite import CODE, Flags, NotFiniteError, explained, usual_suspects
from max_zimage.pipeline.prepare_contexts import fit_together
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.request.loras import without_folders
from max_zimage.serving.worker.encoding import final_output
from max_zimage.serving.worker.messages import Failure, Preview, Progress, failure_output, progress_output
from max_zimage.serving.worker.previews import Previewer, preview_steps
from max_zimage.serving.worker.prompt_features import encoded_output
from max_zimage.serving.worker.running_batch import Pixels, RunningBatch
from max_zimage.serving.worker.stage_spans import StageSpans

_STILL = (
    1.0  # seconds after which a request that wants no report of every step is told of one: others may ask by its id
)
_NAP, _ALERT = 0.0005, 2.0  # seconds between looks into an empty queue, and how long after the last work

NOT_APPLIED = "lora_not_applied"
"""The code of an answer to a request whose adapters cannot be added to the weights."""

_log = logging.getLogger("max_zimage.serving")


class StepScheduler(OneShotScheduler[BaseContextType, PipelineInputsType, PipelineOutputType]):
    """MAX's scheduler of pictures: one step at a time for Z-Image, as it was for any other pipeline."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `max.serve.scheduler.load_scheduler` passes."""
        super().__init__(*args, **kwargs)
        model = getattr(self.pipeline, "_pipeline_model", None)
        self._model = model if isinstance(model, ZImagePipeline) else None
        # The fit takes the autoencoder's encoder along, which may have to be compiled: now, not while a request waits.
        self._previewer = Previewer(self._model).fitted() if self._model else None
        self._max_pictures = int(getattr(self.pipeline, "max_pictures", 1))
        self._mixing = bool(getattr(self.pipeline, "mix_loras", False)) and self._model is not None
        if self._mixing:
            _ = cast(ZImagePipeline, self._model).transformer.adapted  # compiled now, likewise
        self._waiting: list[ZImageContext] = []
        self._running: RunningBatch | None = None
        self._starting: list[ZImageContext] = []
        self._encoding: dict[RequestID, Future[GenerationOutput]] = {}
        self._last_work = 0.0
        self._encoder = ThreadPoolExecutor(2, "encode")
        self._spans = StageSpans()

    def run_iteration(self) -> SchedulerProgress:
        """Take one step of the running batch, or begin one.

        Returns:
            Whether anything was done.
        """
        if self._model is None:
            return super().run_iteration()
        self._remember_cancellations()
        self._receive()
        if self._running or self._waiting:
            try:
                self._work()
            except AdapterError as error:
                self._refuse(error)
            except Exception:
                self._fail()
        elif not self._encoding:
            return self._rest()
        self._last_work = time.monotonic()
        self._deliver(wait=not self._running and not self._waiting)
        return SchedulerProgress.MADE_PROGRESS

    def _rest(self) -> SchedulerProgress:
        """Look again soon: MAX's loop would sleep for up to 10 ms, which the next request would have to wait."""
        if time.monotonic() - self._last_work > _ALERT:
            return SchedulerProgress.NO_PROGRESS
        time.sleep(_NAP)
        return SchedulerProgress.MADE_PROGRESS

    def _receive(self) -> None:
        """Take what came in, and answer what was cancelled while it waited."""
        while (context := self._get_next_request()) is not None:
            self._waiting.append(cast(ZImageContext, context))
        cancelled = [context.request_id for context in self._waiting if self._take_cancellation(context.request_id)]
        self._waiting = [context for context in self._waiting if context.request_id not in cancelled]
        self._cancel(cancelled)

    def _work(self) -> None:
        """One piece of work: begin a batch, or take a step of the one that runs and, after the last, decode."""
        running = self._running
        if running is None:
            self._begin()
            return
        members = [context.request_id for context in running.contexts]
        cancelled = [request for request in members if self._take_cancellation(request)]
        self._cancel(cancelled)
        if len(cancelled) == len(members):
            self._running = None
            return
        running.drop(cancelled)
        running.advance()
        if not running.is_denoised:
            self._report(running)
            return
        pictures = running.pictures()
        self._report(running)
        self._running = None
        for context in running.contexts:
            self._finish(context, running, *pictures[context.request_id])

    def _finish(self, context: ZImageContext, running: RunningBatch, pixels: Pixels, finite: Flags) -> None:
        """Encode a request's pictures; without any that is finite, say why there are none."""
        names = [each.name for each in asked_of(context).loras]
        dtype = cast(ZImagePipeline, self._model).transformer.dtype_name
        suspects = usual_suspects(dtype, step_cache_of(context), names)
        problem = explained("the picture came out as NaN or infinity instead of colours", suspects)
        if finite.any():
            work = self._encoder.submit(self._encoded, context, running.times, pixels, finite, problem)
            self._encoding[context.request_id] = work
            return
        _log.error("request %s: %s", context.request_id, problem)
        self._end(context, Failure(code=CODE, message=problem))

    def _encoded(
        self, context: ZImageContext, times: dict[str, tuple[float, float]], pixels: Pixels, finite: Flags, problem: str
    ) -> GenerationOutput:
        begin = time.monotonic()
        output = final_output(context, pixels, finite, problem)
        self._spans.tell(context, times | {"encode": (begin, time.monotonic())})
        return output

    def _begin(self) -> None:
        """Make a batch of the oldest waiting request and of what fits it."""
        batch: list[ZImageContext] = []
        first = self._waiting[0]
        # Empty in a context that was filled by hand: it goes alone, as does one that is only encoded.
        pictures, key = 0, "" if first.encodes else first.sharing
        for context in self._waiting:
            count = context.num_images_per_prompt
            shares = bool(key) and not context.encodes and (context.sharing == key or self._mixes(first, context))
            if not batch or (shares and pictures + count <= self._max_pictures):
                batch.append(context)
                pictures += count
        begun = {context.request_id for context in batch}
        self._waiting = [context for context in self._waiting if context.request_id not in begun]
        # Said before anything is computed: should it end this process, the server knows whose request it was.
        for context in batch:
            steps = context.steps_in_all
            figures = {"graphs": dict(counts), "embeddings": self._embeddings()}
            self._tell(context, Progress(step=0, steps=steps, seconds={}, batch=pictures, **figures))
        self._starting = batch
        if first.encodes:
            self._encode(first)
            return
        self._running = self._begun(batch)

    def _begun(self, batch: list[ZImageContext]) -> RunningBatch:
        """Begin a batch; where its different adapters cannot be had together, that of the first request's alone."""
        model = cast(ZImagePipeline, self._model)
        same = [context for context in batch if context.sharing == batch[0].sharing]
        try:
            return RunningBatch(model, batch)
        except NotApplied as error:
            if len(same) == len(batch):
                raise
            _log.warning("adapters cannot be mixed, so those of request %s come first: %s", batch[0].request_id, error)
        self._waiting = [*(context for context in batch if context.sharing != batch[0].sharing), *self._waiting]
        self._starting = same
        return RunningBatch(model, same)

    def _encode(self, context: ZImageContext) -> None:
        """Answer a request that wants features of its texts and no picture."""
        begin = time.monotonic()
        try:
            model = cast(ZImagePipeline, self._model)
            with model.adapters.using(asked_of(context).loras):  # not those of the batch before
                output = encoded_output(model, context)
        except NotFiniteError as error:
            _log.error("request %s: %s", context.request_id, error)
            self._end(context, Failure(code=CODE, message=str(error)))
            return
        self._spans.tell(context, {"captions": (begin, time.monotonic())})
        self._answer(context.request_id, SchedulerResult.create(cast(Any, output)))

    def _mixes(self, one: ZImageContext, other: ZImageContext) -> bool:
        """Whether two requests that differ in their adapters can share steps, each under its own."""
        model = cast(ZImagePipeline, self._model)
        if not self._mixing or not fit_together(one, other):
            return False
        try:
            asked, specs = (asked_of(one), asked_of(other)), model.sources.specs
            return all(why_apart(each, each.loras, specs, model.transformer) is None for each in asked)
        except ValueError:  # a file that is gone: the one whose it is will be told, alone
            return False

    def _report(self, running: RunningBatch) -> None:
        done = running.is_denoised
        progress = Progress(
            step=running.step,
            steps=running.num_steps,
            seconds=dict(running.seconds),
            batch=sum(context.num_images_per_prompt for context in running.contexts),
            graphs=dict(counts),
            embeddings=self._embeddings(),
        )
        late = time.monotonic() > running.told + _STILL
        running.told = time.monotonic() if late else running.told
        for context in running.contexts:
            due = running.step in preview_steps(running.num_steps, context.previews)
            if due or done or late or context.reports:
                self._tell(context, progress, self._previews(running, context) if due else ())

    def _embeddings(self) -> dict[str, int]:
        kept = None if self._model is None else self._model.text_encoder.kept_features
        return {} if kept is None else kept.figures()

    def _previews(self, running: RunningBatch, context: ZImageContext) -> Sequence[Preview]:
        rows = running.rows_of(context.request_id)
        files = cast(Previewer, self._previewer).draw(running.estimate()[rows], *running.sides)
        return [Preview(picture=index, png=file) for index, file in enumerate(files) if file is not None]

    def _deliver(self, *, wait: bool) -> None:
        """Send what is encoded; with nothing else to do, wait for it."""
        for request, file in list(self._encoding.items()):
            if wait or file.done():
                del self._encoding[request]
                try:
                    self._answer(request, SchedulerResult.create(cast(Any, file.result())))
                except Exception:
                    _log.exception("request %s: its pictures cannot be encoded", request)
                    self._cancel([request])

    def _refuse(self, error: AdapterError) -> None:
        """Say of a batch why its adapters cannot be had, or no longer; others are served with theirs."""
        if not isinstance(error, NotApplied):  # of a component that came back among the steps
            error = cast(ZImagePipeline, self._model).adapters.refusal(error)
        contexts, self._running = self._running.contexts if self._running else self._starting, None
        for context in contexts:
            _log.error("request %s: %s", context.request_id, error)
            message = without_folders(str(error), asked_of(context).loras)
            self._end(context, Failure(code=NOT_APPLIED, message=message))

    def _end(self, context: ZImageContext, failure: Failure) -> None:
        """Answer a request that gets no pictures, and say why."""
        if context.listens:
            output = failure_output(context.request_id, failure)
            self._answer(context.request_id, SchedulerResult.create(cast(Any, output)))
        self._cancel([context.request_id])

    def _fail(self) -> None:
        """Answer the batch that raised. The cause goes into the log once; MAX's protocol carries none."""
        contexts = self._running.contexts if self._running else self._starting
        names = [context.request_id for context in contexts]
        _log.exception("requests %s failed", ", ".join(map(str, names)))
        self._running = None
        self._cancel(names)

    def _cancel(self, requests: Sequence[RequestID]) -> None:
        for request in requests:
            self._answer(request, SchedulerResult.cancelled())

    def _tell(self, context: ZImageContext, progress: Progress, previews: Sequence[Preview] = ()) -> None:
        if context.listens:
            output = progress_output(context.request_id, progress, previews)
            self._answer(context.request_id, SchedulerResult.create(cast(Any, output)))

    def _answer(self, request: RequestID, result: SchedulerResult[Any]) -> None:
        self.response_queue.put_nowait({request: result})
