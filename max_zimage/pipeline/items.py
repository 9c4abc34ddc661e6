"""The branch rows of a batch: every picture once under each branch, with its positions, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from max.driver import Buffer, Device

from max_zimage.device.devices import kept_rows, upload
from max_zimage.sampling.positions import (
    RopeSpec,
    padded,
    sequence_ids,
    sequence_lengths,
    sequence_offsets,
    sequence_rope,
)


class Places(NamedTuple):
    """Positions of tokens on each axis, on the device.

    Attributes:
        image_ids: int32 [items, image_padded, 3].
        caption_ids: int32 [items, caption_padded, 3].
    """

    image_ids: Buffer
    caption_ids: Buffer


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
        places: Where the tokens of each row stand, for tables that change from one evaluation to the next; or None.
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
    places: Places | None = None

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
            places=None if self.places is None else Places(*(kept_rows(each, rows) for each in self.places)),
        )


def make_items(
    spec: RopeSpec,
    rows: int,
    columns: int,
    lengths: Sequence[int],
    batch: int,
    device: Device,
    branches: Sequence[int] | None = None,
    *,
    with_places: bool = False,
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
        with_places: Whether they hold `Items.places`.
    """
    image_padded, places = padded(rows * columns), None
    if with_places:
        ids = sequence_ids(rows, columns, lengths)
        places = Places(*(upload(each, device) for each in np.split(ids, [image_padded], axis=1)))
    table = sequence_rope(spec, rows, columns, tuple(lengths))
    valid = sequence_lengths(rows, columns, lengths)
    return _items(
        tuple(range(len(lengths) // batch)) if branches is None else tuple(branches),
        batch,
        tuple(valid.tolist()),
        image_rope=upload(table[:, :image_padded], device),
        rope=upload(table, device),
        valid_length=upload(valid, device),
        device=device,
        places=places,
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


def _items(
    branches: tuple[int, ...],
    batch: int,
    lengths: tuple[int, ...],
    *,
    image_rope: Buffer,
    rope: Buffer,
    valid_length: Buffer,
    device: Device,
    places: Places | None = None,
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
        places=places,
    )


def _offsets(lengths: Sequence[int], row: int, device: Device) -> Buffer:
    return upload(sequence_offsets(lengths, row), device)
