"""The engine's side of `max-zimage verify`: the values of every stage, one component in memory at a time.

Every stage is given what the reference made of those before it. A block is seen through the model's final projection,
which is what the compiled step shows of it where the gates of the blocks behind it are closed: those then leave their
input as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from max.driver import CPU, Buffer
from max.dtype import DType

from max_zimage.device.devices import download, upload
from max_zimage.diagnosis.asked import GUIDANCE, Asked
from max_zimage.diagnosis.stages import Array, Values
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.captions import captions_of_request, encoded_features
from max_zimage.pipeline.encoder import CheckedEncoder, ZImageTextEncoder
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.prepare import inputs_of_request
from max_zimage.pipeline.stages import caption_tokens, decoded, unpacked
from max_zimage.pipeline.step_inputs import make_tables, step_inputs
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.request.hidden_layer import DEFAULT_HIDDEN_LAYER
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.positions import padded

Floats = npt.NDArray[np.float32]


def texts_of(checked: CheckedEncoder, asked: Asked, given: Values) -> dict[str, Array]:
    """Token ids of both prompts, and the features of the reference's ids.

    Raises:
        ValueError: If memory is insufficient, or an id has no embedding.
    """
    tokens = [checked.tokenizer.encode(prompt) for prompt in asked.prompts]
    encoder = ZImageTextEncoder(checked)
    ids = np.split(given["tokens"], np.cumsum(given["lengths"])[:-1])
    features = encoded_features(encoder.text_encoder, ids, DEFAULT_HIDDEN_LAYER)
    return {"tokens": np.concatenate(tokens), "features": np.concatenate(features)}


class Generator:
    """Transformer and autoencoder with one request, cut open.

    Args:
        checked: The checkpoint, without its text encoder.
        asked: The picture.
        given: The reference's values.

    Raises:
        ValueError: If memory is insufficient.
    """

    def __init__(self, checked: CheckedModel, asked: Asked, given: Values) -> None:
        self._pipeline = ZImagePipeline.from_prepared(checked)
        self._asked, self._given = asked, given
        positive, negative = np.split(given["features"], np.cumsum(given["lengths"])[:-1])
        self._request = GenerationRequest.create(
            limits=checked.sources.limits,
            defaults=checked.sources.defaults,
            prompt_embeds=[positive],
            negative_prompt_embeds=[negative],
            latents=asked.noise(),
            height=asked.height,
            width=asked.width,
            num_inference_steps=asked.steps,
            guidance_scale=GUIDANCE,
        )

    def stages(self) -> dict[str, Array]:
        """The values of all stages behind the features."""
        lengths = [padded(int(length)) for length in self._given["lengths"]]
        shown = [item[:length] for item, length in zip(_floats(self._captions), lengths, strict=True)]
        return {
            "schedule": np.asarray(self._inputs.schedule.sigmas, np.float32),
            "caption tokens": np.concatenate(shown),
            "first block": self.block(0),
            "velocity": self._predicted(None),
            "latents": self._latents(),
            "pixels": self._pixels(),
        }

    def block(self, index: int) -> Floats:
        """A modulated block's output through the final layer, float32 [2, image tokens, 4 · channels]."""
        return self._predicted(index)

    @property
    def blocks(self) -> Sequence[str]:
        """Names of the modulated blocks, as the checkpoint has them."""
        spec = self._pipeline.transformer.spec
        refiners = [f"noise_refiner.{index}" for index in range(spec.num_blocks - spec.num_layers)]
        return [*refiners, *(f"layers.{index}" for index in range(spec.num_layers))]

    @cached_property
    def _inputs(self) -> ZImageModelInputs:
        pipeline, sources = self._pipeline, self._pipeline.sources
        captions = captions_of_request(self._request, pipeline.tokenizer, pipeline.text_encoder, sources.limits)
        return inputs_of_request(self._request, captions, sources.specs.schedule, pipeline.transformer, pipeline.vae)

    @cached_property
    def _captions(self) -> Buffer:
        pipeline = self._pipeline
        return caption_tokens(pipeline.text_encoder, pipeline.transformer, self._inputs.captions)

    def _predicted(self, through: int | None) -> Floats:
        """The transformer's output for the first noise; None runs all blocks, a number those up to it."""
        pipeline, inputs = self._pipeline, self._inputs
        table, final_scale = pipeline.transformer.modulation_table(inputs.evaluations.timesteps)
        if through is not None:
            values = download(table).copy()
            values[:, through + 1 :, 1::2] = 0  # rows are scale, gate, scale, gate
            table = upload(values, pipeline.device)
        latents = pipeline.preprocess_latents(self._asked.noise())
        tables = make_tables(inputs, table, final_scale, pipeline.device)
        slots = (inputs.evaluations.slots, *map(int, latents.shape))
        history = Buffer.zeros(slots, DType.float32, pipeline.device)
        step = step_inputs(tables, 0, inputs.items, self._captions, latents, history)
        state = pipeline.create_cache_state(1, 0, None)
        return np.asarray(download(pipeline.run_transformer(state, inputs=step)[0]), np.float32)

    def _latents(self) -> Floats:
        run = self._pipeline.denoising(self._inputs)
        run.run()
        return unpacked(run.latents, *run.sides)

    def _pixels(self) -> npt.NDArray[np.uint8]:
        pipeline = self._pipeline
        packed = pipeline.preprocess_latents(self._given["latents"])
        return decoded(pipeline.vae, packed, *self._inputs.sides)[0]


def _floats(buffer: Buffer) -> Floats:
    """Numbers of either dtype on the host, in float32."""
    host = buffer.to(CPU())
    if buffer.dtype == DType.float32:
        return np.asarray(host.to_numpy())
    bits = host.view(DType.uint16, buffer.shape).to_numpy()
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
