"""Requests that share their denoising steps, taken one step at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.pipelines.modeling.types import RequestID

from max_zimage.device.devices import download, upload
from max_zimage.pipeline.context import ZImageContext
from max_zimage.pipeline.denoising import Loop, caption_tokens, decoded, denoise
from max_zimage.pipeline.not_finite import Flags
from max_zimage.pipeline.prepare import inputs_of_contexts
from max_zimage.pipeline.stepping import State, Stepper, stepper_of
from max_zimage.pipeline.zimage import ZImagePipeline

Pixels = npt.NDArray[np.uint8]


@dataclass
class Seconds:
    """Where a rendering's time went.

    Attributes:
        captions: Text encoder and caption conditioning.
        steps: All denoising steps.
        decode: Latents to pixels.
    """

    captions: float = field(default=0.0)
    steps: float = field(default=0.0)
    decode: float = field(default=0.0)


class Rendering:
    """One batch on its way from noise to pictures.

    Args:
        pipeline: Runs it.
        contexts: Requests of one `max_zimage.pipeline.prepare.sharing_key`.
    """

    def __init__(self, pipeline: ZImagePipeline, contexts: Sequence[ZImageContext]) -> None:
        self._pipeline = pipeline
        self.seconds = Seconds()
        self.step = 0
        self.contexts: list[ZImageContext]
        self._latents: Buffer
        self._previous: Buffer
        self._stepper: Stepper
        self._loop: Loop
        self._begin(list(contexts), None, None)

    @property
    def num_steps(self) -> int:
        """Steps of the whole way."""
        return len(self.contexts[0].timesteps)

    @property
    def is_denoised(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.num_steps

    def advance(self) -> None:
        """Take one step and wait until the device has done it, since progress and cancellation go by steps."""
        begin = time.perf_counter()
        self._previous = self._latents
        _, self._latents = next(self._loop)
        self._pipeline.device.synchronize()
        self.seconds.steps += time.perf_counter() - begin
        self.step += 1

    def drop(self, requests: Collection[RequestID]) -> None:
        """Go on without some of the requests; at least one must stay."""
        kept = [context for context in self.contexts if context.request_id not in requests]
        if len(kept) < len(self.contexts):
            rows = [row for context in kept for row in self._rows(context)]
            self._begin(kept, download(self._latents)[rows], self._stepper.state(rows))

    def pictures(self) -> dict[RequestID, tuple[Pixels, Flags]]:
        """Decode the latents: uint8 [pictures, height, width, 3] by request, and which of them are finite."""
        begin = time.perf_counter()
        first, scale = self.contexts[0], 2 * self._pipeline.vae_scale_factor
        decode = self._pipeline.vae.model
        pixels, finite = decoded(decode, self._latents, first.height // scale, first.width // scale)
        self.seconds.decode = time.perf_counter() - begin
        rows = {context.request_id: self._rows(context) for context in self.contexts}
        return {request: (pixels[own], finite[own]) for request, own in rows.items()}

    def estimate(self) -> npt.NDArray[np.float32]:
        """What the last step expects the clean latents to be, on the host: [pictures, image tokens, 4 · channels].

        A step moves latents along a line that ends at the clean ones: two points of it give the end.
        """
        before, after = (float(level) for level in self.contexts[0].sigmas[self.step - 1 : self.step + 1])
        latents, previous = download(self._latents), download(self._previous)
        velocity = (previous - latents) / np.float32(before - after)
        return np.asarray(latents - np.float32(after) * velocity, np.float32)

    def rows_of(self, request: RequestID) -> list[int]:
        """The pictures of a request among those of the batch."""
        return next(self._rows(context) for context in self.contexts if context.request_id == request)

    def _begin(
        self, contexts: list[ZImageContext], latents: npt.NDArray[np.float32] | None, state: State | None
    ) -> None:
        """Start, or start again where the steps have come to: with fewer requests, and their latents."""
        begin = time.perf_counter()
        self.contexts, pipeline = contexts, self._pipeline
        rope_spec, vae = pipeline.transformer.rope_spec, pipeline.vae
        inputs = inputs_of_contexts(contexts, rope_spec, vae, pipeline.device, done=self.step)
        captions = caption_tokens(pipeline.text_encoder, pipeline.transformer, inputs.captions)
        packed = pipeline.preprocess_latents(inputs.latents) if latents is None else upload(latents, pipeline.device)
        self._latents = packed
        self._previous = self._latents
        self._stepper = stepper_of(pipeline.transformer, inputs, captions, state)
        self._loop = denoise(pipeline.transformer, inputs, self._latents, self._stepper)
        self.seconds.captions += time.perf_counter() - begin

    def _rows(self, context: ZImageContext) -> list[int]:
        before = takewhile(lambda each: each is not context, self.contexts)
        start = sum(each.num_images_per_prompt for each in before)
        return list(range(start, start + context.num_images_per_prompt))
