"""Requests that share their denoising steps, taken one step at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt
from max.pipelines.modeling.types import RequestID

from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.bound_adapters import NotApplied
from max_zimage.pipeline.context import ZImageContext, asked_of
from max_zimage.pipeline.not_finite import Flags
from max_zimage.pipeline.prepare_contexts import inputs_of_contexts, own_adapters, pastes_of_context
from max_zimage.pipeline.stages import decoded
from max_zimage.pipeline.zimage import ZImagePipeline

Pixels = npt.NDArray[np.uint8]


class RunningBatch:
    """One batch on its way from noise to pictures.

    Attributes:
        contexts: The requests that are left.
        seconds: What each stage took so far: captions (text encoder and caption conditioning), steps (all denoising
            steps), decode (latents to pixels).
        told: `time.monotonic` of when all its requests were told of a step.
        times: Stage -> when it began and ended, of `time.monotonic`.

    Args:
        pipeline: Runs it.
        contexts: Requests that `max_zimage.pipeline.prepare_contexts.fit_together`.

    Raises:
        NotApplied: If their adapters cannot be had, or not together.
    """

    def __init__(self, pipeline: ZImagePipeline, contexts: Sequence[ZImageContext]) -> None:
        begin = self.told = time.monotonic()
        self._pipeline, self.contexts = pipeline, list(contexts)
        self.seconds: dict[str, float] = {}
        self.times: dict[str, tuple[float, float]] = {}
        spec = pipeline.sources.specs.schedule
        parts = pipeline.transformer, pipeline.vae, pipeline.text_encoder
        mixed = own_adapters(self.contexts, pipeline.sources.specs, pipeline.transformer)
        # Now, since texts beside features are encoded on the way to the inputs: not under those of the batch before.
        pipeline.adapters.bind(() if mixed else asked_of(self.contexts[0]).loras)
        inputs = inputs_of_contexts(self.contexts, spec, *parts, mixed)
        if mixed:
            self._check_memory(inputs)
        self._tiling = inputs.tiling
        pipeline.vae.expect(self._tiling, inputs.height, inputs.width)
        self._run = pipeline.denoising(inputs)
        self._took("captions", begin)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._run.step

    @property
    def num_steps(self) -> int:
        """Steps of the whole way."""
        return self._run.num_steps

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the latents as they are now, in tokens."""
        return self._run.sides

    @property
    def is_denoised(self) -> bool:
        """Whether all steps are done."""
        return self._run.is_done

    def advance(self) -> None:
        """Take one step and wait until the device has done it, since progress and cancellation go by steps."""
        begin = time.monotonic()
        self._run.advance()
        self._pipeline.device.synchronize()
        self._took("steps", begin)

    def drop(self, requests: Collection[RequestID]) -> None:
        """Go on without some of the requests; at least one must stay."""
        kept = [context for context in self.contexts if context.request_id not in requests]
        if len(kept) < len(self.contexts):
            rows = [row for context in kept for row in self._rows(context)]
            self.contexts = kept
            self._run.keep(rows)

    def pictures(self) -> dict[RequestID, tuple[Pixels, Flags]]:
        """Decode the latents: uint8 [pictures, height, width, 3] by request, and which of them are finite."""
        begin = time.monotonic()
        pastes = [each for context in self.contexts for each in pastes_of_context(context)]
        pixels, finite = decoded(self._pipeline.vae, self._run.latents, *self._run.sides, self._tiling, pastes)
        self._took("decode", begin)
        rows = {context.request_id: self._rows(context) for context in self.contexts}
        return {request: (pixels[own], finite[own]) for request, own in rows.items()}

    def estimate(self) -> npt.NDArray[np.float32]:
        """What the last step expects the clean latents to be, on the host: [pictures, image tokens, 4 · channels]."""
        return self._run.clean_estimate()

    def rows_of(self, request: RequestID) -> list[int]:
        """The pictures of a request among those of the batch."""
        return next(self._rows(context) for context in self.contexts if context.request_id == request)

    def _check_memory(self, inputs: ZImageModelInputs) -> None:
        """Compare what the steps take with what is left beside adapters that are in no weight.

        Raises:
            NotApplied: If that does not suffice.
        """
        pipeline = self._pipeline
        try:
            pipeline.residency.check(pipeline.text_encoder, pipeline.transformer, inputs)
        except NotEnoughMemoryError as error:
            raise NotApplied(f"adapters beside the weights leave too little: {error}") from error

    def _took(self, stage: str, begin: float) -> None:
        """Count the time of a stage, or of a further part of it."""
        end = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + end - begin
        self.times[stage] = (self.times.get(stage, (begin,))[0], end)

    def _rows(self, context: ZImageContext) -> list[int]:
        before = takewhile(lambda each: each is not context, self.contexts)
        start = sum(each.num_images_per_prompt for each in before)
        return list(range(start, start + context.num_images_per_prompt))
