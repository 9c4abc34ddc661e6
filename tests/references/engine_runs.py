"""The engine, cut open: its inputs, features and transformer for one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from max_zimage import ZImageModelInputs, ZImagePipeline
from max_zimage.device.devices import download, upload
from max_zimage.pipeline.captions import captions_of_request, float_features
from max_zimage.pipeline.prepare import inputs_of_request
from max_zimage.pipeline.run import Run
from max_zimage.pipeline.stages import caption_tokens
from max_zimage.pipeline.step_inputs import StepInputs, make_tables, step_inputs
from max_zimage.request.request import GenerationRequest
from tests.references.diffusers_runs import Call, Features, FloatArray, Pair, packed


def request_of(pair: Pair, call: Call, features: Features | None = None) -> GenerationRequest:
    """The engine's request for a call; given text features take the place of its captions."""
    arguments = pair.arguments(call)
    if features is not None:
        for name in ("prompt", "negative_prompt"):
            arguments.pop(name, None)
        positive, negative = ([item.float().numpy() for item in branch] for branch in features)
        arguments["prompt_embeds"] = positive
        arguments["negative_prompt_embeds"] = negative or None
    sources = pair.ours.sources
    return GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, shift=call.shift, **arguments)


def inputs_of(pipeline: ZImagePipeline, request: GenerationRequest) -> ZImageModelInputs:
    """What `ZImagePipeline.generate` hands to `execute`."""
    captions = captions_of_request(request, pipeline.tokenizer, pipeline.text_encoder, pipeline.sources.limits)
    return inputs_of_request(request, captions, pipeline.sources.specs.schedule, pipeline.transformer, pipeline.vae)


def request_with(pair: Pair, call: Call, **asked: Any) -> GenerationRequest:
    """The engine's request for a call, with further fields."""
    sources = pair.ours.sources
    arguments = {name: value for name, value in pair.arguments(call).items() if value is not None}
    return GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **arguments | asked)


def finished_run(pipeline: ZImagePipeline, request: GenerationRequest) -> Run:
    """A request's run, with all steps taken."""
    run = pipeline.denoising(inputs_of(pipeline, request))
    run.run()
    return run


def features_of(pipeline: ZImagePipeline, inputs: ZImageModelInputs) -> list[FloatArray]:
    """Text features of the distinct captions, float32 [tokens, caption_dim] each."""
    values = float_features(pipeline.text_encoder, pipeline.text_encoder(inputs.captions.tokens))
    return [row[:length] for row, length in zip(values, inputs.captions.lengths, strict=True)]


@dataclass(frozen=True)
class OpenTransformer:
    """The transformer of one request, run step by step on latents of the caller's choice."""

    pipeline: ZImagePipeline
    inputs: ZImageModelInputs
    captions: Buffer

    @classmethod
    def of(cls, pipeline: ZImagePipeline, inputs: ZImageModelInputs) -> OpenTransformer:
        """Encode the request's captions."""
        return cls(pipeline, inputs, caption_tokens(pipeline.text_encoder, pipeline.transformer, inputs.captions))

    def step(self, step: int, latents: Buffer, through: int | None = None) -> StepInputs:
        """All that an evaluation takes, on both guidance branches; `through` as in `predict`.

        Args:
            step: Whose timestep it is.
            latents: float32 [pictures, image tokens, 4 · channels].
            through: See `predict`.
        """
        transformer, plan = self.pipeline.transformer, self.inputs.evaluations
        table, final_scale = transformer.modulation_table(plan.timesteps)
        if through is not None:
            values = download(table).copy()
            values[:, through + 1 :, 1::2] = 0  # rows are scale, gate, scale, gate
            table = upload(values, self.pipeline.device)
        tables = make_tables(self.inputs, table, final_scale, self.pipeline.device)
        history = Buffer.zeros((plan.slots, *map(int, latents.shape)), DType.float32, self.pipeline.device)
        return step_inputs(tables, step, self.inputs.items, self.captions, latents, history)

    def predict(self, latents: FloatArray, step: int, through: int | None = None) -> FloatArray:
        """The transformer's output for every item, as image tokens.

        Args:
            latents: float32 [pictures, channels, height/8, width/8].
            step: Whose timestep it is.
            through: The last modulated block that takes part. The gates of those behind it are closed, which leaves
                their input as it is: what comes out is the final projection of this block's output. None runs all.
        """
        state = self.pipeline.create_cache_state(len(latents), 0, None)
        inputs = self.step(step, upload(packed(latents), self.pipeline.device), through)
        (prediction,) = self.pipeline.run_transformer(state, inputs=inputs)
        return np.asarray(download(prediction), np.float32)
