"""A request on the device: everything the denoising loop takes, made before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType

from max_zimage.device.devices import upload
from max_zimage.sampling.positions import (
    RopeSpec,
    caption_rope,
    padded,
    sequence_lengths,
    sequence_offsets,
    sequence_rope,
)
from max_zimage.sampling.schedule import Schedule
from max_zimage.sampling.step_cache import StepCache

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions:
    """The distinct captions of a request, as token ids or as features.

    Attributes:
        tokens: int64 [tokens] each; empty where `features` are given.
        features: float32 [tokens, caption_dim] each, in place of the text encoder's; empty where `tokens` are given.
        rows: Which caption each item of the transformer's batch shows: one a picture, then with guidance one a picture
            again.
    """

    tokens: tuple[IdArray, ...]
    features: tuple[FloatArray, ...]
    rows: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each caption."""
        return tuple(len(caption) for caption in (self.features or self.tokens))


@dataclass(frozen=True, kw_only=True, eq=False)
class ZImageModelInputs:
    """One request, ready to execute.

    Attributes:
        captions: What the pictures show, on the host.
        latents: float32 [batch, channels, height/16, 2, width/16, 2] on the device: the starting noise.
        schedule: Sigmas, timesteps and deltas, on the host.
        guidance: float32 [steps], the guidance scale of each step; 0 runs the positive branch alone.
        cfg_normalization: Limit of the prediction's norm as a share of the positive branch's; 0 for none.
        height: Pixels.
        width: Pixels.
        num_images_per_prompt: Pictures of every prompt; all pictures where requests share a batch.
        items: The transformer's batch; with both guidance branches if any step is guided.
        step_cache: Leaves out steps, or None.
        steps_done: Steps of the batch's way that lie behind it and are not in `schedule`; a step cache counts them.
    """

    captions: Captions
    latents: Buffer
    schedule: Schedule
    guidance: FloatArray
    cfg_normalization: float
    height: int
    width: int
    num_images_per_prompt: int
    items: Items
    step_cache: StepCache | None
    steps_done: int

    @property
    def num_inference_steps(self) -> int:
        """Evaluations of the transformer."""
        return self.schedule.num_steps

    @property
    def batch(self) -> int:
        """Pictures."""
        return int(self.latents.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """What the rows of the transformer's batch are, on the device; fixed for all steps.

    Attributes:
        image_rope: float32 [items, image_padded, head_dim/2, 2].
        rope: float32 [items, image_padded + caption_padded, head_dim/2, 2].
        lengths: Attended tokens of each item, on the host.
        valid_length: uint32 [items], these on the device.
        offsets: uint32 [sequences + 1], the same as sequences; see `max_zimage.sampling.positions.sequence_offsets`.
        latent_rows: int32 [items], the picture of each item.
        positive_rows: int32 [batch].
        negative_rows: int32 [batch].
    """

    lengths: tuple[int, ...]
    image_rope: Buffer
    rope: Buffer
    valid_length: Buffer
    offsets: Buffer
    latent_rows: Buffer
    positive_rows: Buffer
    negative_rows: Buffer

    def positive(self) -> Items:
        """The positive branch alone, for steps without guidance: views of the same memory, but for the offsets."""
        batch = slice(0, int(self.positive_rows.shape[0]))
        return Items(
            lengths=self.lengths[batch],
            image_rope=self.image_rope[batch, :, :, :],
            rope=self.rope[batch, :, :, :],
            valid_length=self.valid_length[batch],
            offsets=_offsets(self.lengths[batch], int(self.rope.shape[1]), self.offsets.device),
            latent_rows=self.positive_rows,
            positive_rows=self.positive_rows,
            negative_rows=self.positive_rows,
        )

    def arguments(self, caption_tokens: Buffer) -> tuple[Buffer, ...]:
        """The arguments of `graphs.step.denoise.DenoiseStep` from the captions to the negative rows.

        Args:
            caption_tokens: [at least as many items, caption_padded, dim].
        """
        return (
            caption_tokens[: int(self.latent_rows.shape[0]), :, :],
            self.image_rope,
            self.rope,
            self.valid_length,
            self.offsets,
            self.latent_rows,
            self.positive_rows,
            self.negative_rows,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What changes from step to step, as views of tables that lie on the device.

    Attributes:
        guided: Whether the negative branch runs.
        arguments: The arguments of `graphs.step.denoise.DenoiseStep` from the modulation to delta.
    """

    guided: bool
    arguments: tuple[Buffer, ...]


def make_items(spec: RopeSpec, rows: int, columns: int, lengths: Sequence[int], batch: int, device: Device) -> Items:
    """Lay out the transformer's batch.

    Args:
        spec: The transformer's rotary embedding.
        rows: Image height in tokens.
        columns: Image width in tokens.
        lengths: Tokens of each item's caption: one a picture, then with guidance one a picture again.
        batch: Pictures.
        device: Where the transformer runs.
    """
    table = sequence_rope(spec, rows, columns, tuple(lengths))
    valid = sequence_lengths(rows, columns, lengths)
    image = padded(rows * columns)
    pictures = np.arange(batch, dtype=np.int32)
    branches = len(lengths) // batch
    return Items(
        lengths=tuple(valid.tolist()),
        image_rope=upload(table[:, :image], device),
        rope=upload(table, device),
        valid_length=upload(valid, device),
        offsets=_offsets(valid.tolist(), table.shape[1], device),
        latent_rows=upload(np.tile(pictures, branches), device),
        positive_rows=upload(pictures, device),
        negative_rows=upload(pictures + batch * (branches - 1), device),
    )


def caption_arguments(spec: RopeSpec, captions: Captions, device: Device) -> tuple[Buffer, ...]:
    """The arguments of `graphs.model.conditioning.CaptionConditioning` behind the features."""
    lengths = captions.lengths
    attended = [padded(length) for length in lengths]
    return (
        upload(np.asarray(lengths, np.uint32), device),
        upload(np.asarray(attended, np.uint32), device),
        _offsets(attended, max(attended), device),
        upload(caption_rope(spec, lengths), device),
        upload(np.asarray(captions.rows, np.int32), device),
    )


def _offsets(lengths: Sequence[int], row: int, device: Device) -> Buffer:
    return upload(sequence_offsets(lengths, row), device)


def steps(inputs: ZImageModelInputs, modulation: Buffer, final_scale: Buffer, device: Device) -> Iterator[Step]:
    """Cut the tables of a schedule into steps.

    Args:
        inputs: The request.
        modulation: float32 [steps, num_blocks, 4, dim].
        final_scale: float32 [steps, dim].
        device: Where the transformer runs.

    Yields:
        One step after the other; nothing is copied.
    """
    _, blocks, four, dim = modulation.shape
    scales, deltas = upload(inputs.guidance, device), upload(inputs.schedule.deltas, device)
    # Without guidance the prediction is the positive branch itself, whose norm nothing limits.
    limits = upload(np.where(inputs.guidance > 0, np.float32(inputs.cfg_normalization), np.float32(0)), device)
    for i in range(inputs.num_inference_steps):
        row = slice(i, i + 1)
        yield Step(
            guided=bool(inputs.guidance[i] > 0),
            arguments=(
                modulation[row, :, :, :].view(DType.float32, (blocks, four, dim)),
                final_scale[row, :].view(DType.float32, (dim,)),
                scales[row],
                limits[row],
                deltas[row],
            ),
        )
