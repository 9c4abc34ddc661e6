"""A request on the device: everything that the denoising loop takes, made before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device

from max_zimage.device.devices import kept_rows, upload
from max_zimage.images.tiles import WHOLE, Tiling
from max_zimage.pipeline.features import FeatureChange
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Guidance
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
        rows: Which caption each branch row shows: one for each picture, then for each further branch one for each
            picture again.
        changes: What is done to the features of each caption that is given as tokens; empty for nothing.
    """

    tokens: tuple[IdArray, ...]
    features: tuple[FloatArray, ...]
    rows: tuple[int, ...]
    changes: tuple[FeatureChange, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of features of each caption, its tokens as a rule."""
        found = [len(caption) for caption in (self.features or self.tokens)]
        if not self.changes or self.features:
            return tuple(found)
        return tuple(min(length, change.rows) for length, change in zip(found, self.changes, strict=True))

    @property
    def are_changed(self) -> bool:
        """Whether features are changed on the host."""
        return any(change.is_needed(len(ids)) for change, ids in zip(self.changes, self.tokens, strict=False))


@dataclass(frozen=True, kw_only=True, eq=False)
class ZImageModelInputs:
    """One request, ready to execute.

    Attributes:
        captions: What the pictures show, on the host.
        latents: float32 [batch, channels, height/16, 2, width/16, 2] on the device: the starting noise.
        schedule: Sigmas, timesteps and deltas, on the host.
        evaluations: What the sampler makes of them.
        guidance: Its branches, and how much each counts in every evaluation.
        height: Pixels.
        width: Pixels.
        num_images_per_prompt: Pictures of every prompt; all pictures where requests share a batch.
        items: The branch rows.
        step_cache: Leaves out steps, or None.
        seeds: Of each picture, for the noise that a sampler draws between steps; empty where it draws none.
        tiling: How pictures are decoded.
    """

    captions: Captions
    latents: Buffer
    schedule: Schedule
    evaluations: Evaluations
    guidance: Guidance
    height: int
    width: int
    num_images_per_prompt: int
    items: Items
    step_cache: StepCache | None
    seeds: tuple[int, ...] = ()
    tiling: Tiling = WHOLE

    @property
    def num_inference_steps(self) -> int:
        """Steps of the schedule."""
        return self.schedule.num_steps

    @property
    def batch(self) -> int:
        """Pictures."""
        return int(self.latents.shape[0])

    @property
    def image_tokens(self) -> int:
        """Tokens of a picture."""
        return int(self.latents.shape[2]) * int(self.latents.shape[4])


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """The branch rows: every picture once under each branch, a branch's pictures together. On the device.

    Attributes:
        branches: Which branches: 0 is the positive one, 1 the negative one, others follow.
        lengths: Attended tokens of each row, on the host.
        image_rope: float32 [items, image_padded, head_dim/2, 2].
        rope: float32 [items, image_padded + caption_padded, head_dim/2, 2].
        valid_length: uint32 [items], `lengths` on the device.
        offsets: uint32 [sequences + 1], the same as sequences; see `max_zimage.sampling.positions.sequence_offsets`.
        latent_rows: int32 [items], the picture of each row.
        variants: int32 [items], its variant of the modulation.
        positive_rows: int32 [batch].
        negative_rows: int32 [batch]; the positive ones where there is no negative branch.
        other_rows: int32 [others, batch].
    """

    branches: tuple[int, ...]
    lengths: tuple[int, ...]
    image_rope: Buffer
    rope: Buffer
    valid_length: Buffer
    offsets: Buffer
    latent_rows: Buffer
    variants: Buffer
    positive_rows: Buffer
    negative_rows: Buffer
    other_rows: Buffer

    @property
    def count(self) -> int:
        """Branch rows."""
        return len(self.lengths)

    @property
    def batch(self) -> int:
        """Pictures."""
        return self.count // len(self.branches)

    def rows_of(self, pictures: Sequence[int], branches: Sequence[int] | None = None) -> list[int]:
        """The rows of some pictures under some branches, all if not given."""
        places = [self.branches.index(branch) for branch in (self.branches if branches is None else branches)]
        return [place * self.batch + picture for place in places for picture in pictures]

    def of(self, pictures: Sequence[int], branches: Sequence[int]) -> Items:
        """Some pictures under some branches; views of the same memory where their rows lie at its beginning."""
        rows, device = self.rows_of(pictures, branches), self.rope.device
        lengths = tuple(self.lengths[row] for row in rows)
        return _items(
            tuple(branches),
            len(pictures),
            lengths,
            image_rope=kept_rows(self.image_rope, rows),
            rope=kept_rows(self.rope, rows),
            valid_length=kept_rows(self.valid_length, rows),
            device=device,
        )


def make_items(
    spec: RopeSpec,
    rows: int,
    columns: int,
    lengths: Sequence[int],
    batch: int,
    device: Device,
    branches: Sequence[int] | None = None,
) -> Items:
    """Lay out the branch rows.

    Args:
        spec: The transformer's rotary embedding.
        rows: Image height in tokens.
        columns: Image width in tokens.
        lengths: Tokens of each row's caption.
        batch: Pictures.
        device: Where the transformer runs.
        branches: Which branches they are; the positive one and those that follow it if not given.
    """
    table = sequence_rope(spec, rows, columns, tuple(lengths))
    valid = sequence_lengths(rows, columns, lengths)
    return _items(
        tuple(range(len(lengths) // batch)) if branches is None else tuple(branches),
        batch,
        tuple(valid.tolist()),
        image_rope=upload(table[:, : padded(rows * columns)], device),
        rope=upload(table, device),
        valid_length=upload(valid, device),
        device=device,
    )


def one_row(image_rope: Buffer, rope: Buffer, length: int) -> Items:
    """One picture without guidance, on tables of its own; for measurements.

    Args:
        image_rope: float32 [1, image_padded, head_dim/2, 2].
        rope: float32 [1, tokens, head_dim/2, 2].
        length: Attended tokens.
    """
    valid = upload(np.asarray([length], np.uint32), rope.device)
    return _items((0,), 1, (length,), image_rope=image_rope, rope=rope, valid_length=valid, device=rope.device)


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


def _items(
    branches: tuple[int, ...],
    batch: int,
    lengths: tuple[int, ...],
    *,
    image_rope: Buffer,
    rope: Buffer,
    valid_length: Buffer,
    device: Device,
) -> Items:
    pictures = np.arange(batch, dtype=np.int32)
    starts = {branch: place * batch + pictures for place, branch in enumerate(branches)}
    others = [starts[branch] for branch in branches if branch > 1]
    return Items(
        branches=branches,
        lengths=lengths,
        image_rope=image_rope,
        rope=rope,
        valid_length=valid_length,
        offsets=_offsets(lengths, int(rope.shape[1]), device),
        latent_rows=upload(np.tile(pictures, len(branches)), device),
        # The positive and the negative branch have all blocks, each other one a variant of its own.
        variants=upload(np.repeat([max(branch - 1, 0) for branch in branches], batch).astype(np.int32), device),
        positive_rows=upload(starts[0].astype(np.int32), device),
        negative_rows=upload(starts.get(1, starts[0]).astype(np.int32), device),
        other_rows=upload(np.asarray(others, np.int32).reshape(len(others), batch), device),
    )


def _offsets(lengths: Sequence[int], row: int, device: Device) -> Buffer:
    return upload(sequence_offsets(lengths, row), device)
