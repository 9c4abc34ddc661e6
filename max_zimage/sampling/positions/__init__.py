"""Padding to 32, position ids and rotary tables, as pure numpy.

A sequence is [image, image padding, caption, caption padding]. Both parts are padded to a multiple of 32 with learned
tokens that are attended; a batch then pads shorter captions at the end, and those rows are masked.

| token | position (frame, row, column) |
|---|---|
| caption token i, padding to 32 included | (i + 1, 0, 0) |
| image token | (padded caption length + 1, row, column) |
| image padding | (0, 0, 0) |
| batch padding (masked) | (0, 0, 0) |

Reference: diffusers `transformer_z_image.py`, `RopeEmbedder` and `patchify_and_embed`; transformers
`modeling_qwen3.py`, `Qwen3RotaryEmbedding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

SEQUENCE_MULTIPLE = 32
"""Captions and images are padded to a multiple of this many tokens."""

PIXELS_PER_TOKEN = 16
"""Side of an image token in pixels: 8 of the autoencoder times 2 of a patch."""

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """The rotary embedding of a checkpoint's transformer.

    Attributes:
        axes_dims: Width of each axis (frame, row, column) in a head; even, their sum is the head dimension.
        axes_lens: Number of positions on each axis; a hard limit on captions and image sizes.
        theta: Base of the frequencies.
    """

    axes_dims: tuple[int, int, int]
    axes_lens: tuple[int, int, int]
    theta: float

    def __post_init__(self) -> None:
        """Refuse widths that cannot be rotated in pairs and axes too short for any picture."""
        if any(dim < 2 or dim % 2 for dim in self.axes_dims):
            raise ValueError(f"axes_dims must be even numbers of at least 2, got {self.axes_dims}")
        if self.axes_lens[0] < SEQUENCE_MULTIPLE + 2 or min(self.axes_lens) < 1:
            raise ValueError(f"axes_lens must hold one caption of 32 tokens and one image token, got {self.axes_lens}")

    @property
    def pairs(self) -> int:
        """Rotated pairs in a head, half of the head dimension."""
        return sum(self.axes_dims) // 2


def padded(length: int) -> int:
    """Return the smallest multiple of 32 that holds `length` tokens."""
    return -(-length // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


def max_caption_tokens(axes_lens: Sequence[int]) -> int:
    """Return the longest caption in tokens: padded, it must leave a frame position for the image behind it."""
    return (axes_lens[0] - 2) // SEQUENCE_MULTIPLE * SEQUENCE_MULTIPLE


def max_image_side(axes_lens: Sequence[int]) -> tuple[int, int]:
    """Return the largest (height, width) in pixels."""
    return axes_lens[1] * PIXELS_PER_TOKEN, axes_lens[2] * PIXELS_PER_TOKEN


def caption_ids(length: int) -> IdArray:
    """Return the positions of a caption of `length` tokens, int32 [padded(length), 3]."""
    ids = np.zeros((padded(length), 3), np.int32)
    ids[:, 0] = np.arange(1, len(ids) + 1)
    return ids


def image_ids(rows: int, columns: int, caption_length: int) -> IdArray:
    """Return the positions of an image that follows a caption.

    Args:
        rows: Height in tokens.
        columns: Width in tokens.
        caption_length: Caption tokens, unpadded.

    Returns:
        int32 [padded(rows * columns), 3], row by row.
    """
    ids = np.zeros((padded(rows * columns), 3), np.int32)
    image = ids[: rows * columns].reshape(rows, columns, 3)
    image[..., 0] = padded(caption_length) + 1
    image[..., 1] = np.arange(rows)[:, None]
    image[..., 2] = np.arange(columns)
    return ids


def rope_table(spec: RopeSpec, ids: IdArray) -> FloatArray:
    """Return the rotation of every pair at given positions.

    Args:
        spec: The transformer's rotary embedding.
        ids: Integer positions [..., 3], each within `spec.axes_lens`.

    Returns:
        float32 [..., pairs, 2], (cos, sin); the pairs of the frame axis first, then rows, then columns.

    Raises:
        ValueError: If a position is outside its axis.
    """
    parts = []
    for axis, length in enumerate(spec.axes_lens):
        position = ids[..., axis]
        if position.size and not 0 <= position.min() <= position.max() < length:
            raise ValueError(
                f"positions of axis {axis} must lie in 0 to {length - 1} (axes_lens {spec.axes_lens}), "
                f"got {position.min()} to {position.max()}"
            )
        parts.append(axis_table(spec, axis)[position])
    return np.concatenate(parts, axis=-2)


@lru_cache(maxsize=8)
def axis_table(spec: RopeSpec, axis: int) -> FloatArray:
    """Return (cos, sin) of one axis, float32 [axes_lens[axis], axes_dims[axis] / 2, 2], read-only."""
    return _read_only(turns(axis_frequencies(spec.axes_dims[axis], spec.theta), spec.axes_lens[axis]))


def axis_frequencies(dim: int, theta: float) -> npt.NDArray[np.float64]:
    """Return the angle that each pair of an axis turns by from one position to the next, float64 [dim / 2]."""
    return np.asarray(1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim), np.float64)


def turns(frequencies: npt.NDArray[np.float64], length: int, magnitude: float = 1.0) -> FloatArray:
    """Return cosine and sine of positions times frequencies.

    Args:
        frequencies: float64 [pairs].
        length: Positions, from 0.
        magnitude: What both are multiplied by.

    Returns:
        float32 [length, pairs, 2].
    """
    # The reference rounds the angle to float32 before the cosine: at large positions that moves the value by far more
    # than the rounding of the cosine itself, so it is part of what the weights were trained with.
    angles = np.outer(np.arange(length, dtype=np.float64), frequencies).astype(np.float32).astype(np.float64)
    return (magnitude * np.stack([np.cos(angles), np.sin(angles)], axis=-1)).astype(np.float32)


def sequence_ids(rows: int, columns: int, caption_lengths: Sequence[int]) -> IdArray:
    """Return the positions of a batch of [image, caption] sequences.

    Args:
        rows: Image height in tokens.
        columns: Image width in tokens.
        caption_lengths: Unpadded tokens of each item's caption.

    Returns:
        int32 [N, padded(rows * columns) + padded longest caption, 3], those of `sequence_rope`.
    """
    images = np.stack([image_ids(rows, columns, length) for length in caption_lengths])
    return np.concatenate([images, _captions_ids(caption_lengths)], axis=1)


@lru_cache(maxsize=16)
def caption_rope(spec: RopeSpec, caption_lengths: tuple[int, ...]) -> FloatArray:
    """Return the rotary table of a batch of captions alone, as the context refiner needs it.

    Args:
        spec: The transformer's rotary embedding.
        caption_lengths: Unpadded tokens of each caption.

    Returns:
        float32 [N, padded longest caption, pairs, 2], read-only. Rows behind an item's own padding hold position 0.

    Raises:
        ValueError: If a caption is empty or too long for the table.
    """
    _check_captions(spec, caption_lengths)
    return _read_only(rope_table(spec, _captions_ids(caption_lengths)))


@lru_cache(maxsize=8)
def sequence_rope(spec: RopeSpec, rows: int, columns: int, caption_lengths: tuple[int, ...]) -> FloatArray:
    """Return the rotary table of a batch of [image, caption] sequences.

    Args:
        spec: The transformer's rotary embedding.
        rows: Image height in tokens, pixels / 16.
        columns: Image width in tokens, pixels / 16.
        caption_lengths: Unpadded tokens of each item's caption; an item's image stands at the frame behind its own
            padded caption, so items of unequal captions have unequal image tables.

    Returns:
        float32 [N, padded(rows * columns) + padded longest caption, pairs, 2], read-only.

    Raises:
        ValueError: If the image or a caption is empty or outside the limits of `spec.axes_lens`.
    """
    for name, size, limit in (("rows", rows, spec.axes_lens[1]), ("columns", columns, spec.axes_lens[2])):
        if not 1 <= size <= limit:
            raise ValueError(
                f"the image must have 1 to {limit} token {name} (up to {limit * PIXELS_PER_TOKEN} pixels), got {size}"
            )
    captions = caption_rope(spec, caption_lengths)
    images = {length: rope_table(spec, image_ids(rows, columns, length)) for length in set(caption_lengths)}
    batch = np.stack([images[length] for length in caption_lengths])
    return _read_only(np.concatenate([batch, captions], axis=1))


@lru_cache(maxsize=16)
def text_rope(head_dim: int, theta: float, length: int) -> FloatArray:
    """Return the rotary table of the text encoder.

    Args:
        head_dim: Width of a head.
        theta: Base of the frequencies.
        length: Positions, from 0.

    Returns:
        float32 [length, head_dim / 2, 2], (cos, sin), read-only. Frequencies and angles are rounded to float32 as the
        reference rounds them; in float64 the angles of long prompts would move by 1e-4.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    angles = (np.arange(length, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return _read_only(np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32))


def sequence_lengths(rows: int, columns: int, caption_lengths: Sequence[int]) -> npt.NDArray[np.uint32]:
    """Return the attended tokens of every [image, caption] sequence, uint32 [N]; only batch padding lies behind."""
    return np.asarray([padded(rows * columns) + padded(length) for length in caption_lengths], np.uint32)


def sequence_offsets(lengths: Sequence[int], row: int) -> npt.NDArray[np.uint32]:
    """Return where sequences begin in a batch whose rows are padded to one length, and where the last one ends.

    The padding behind a row's tokens is a sequence of its own, so that it is mixed with nothing else.

    Args:
        lengths: Tokens of each row.
        row: The length that all are padded to.

    Returns:
        uint32 [sequences + 1]: for two rows of 3 and 4 tokens, padded to 4, it is 0, 3, 4, 8.

    Raises:
        ValueError: If a row is empty or longer than it may be.
    """
    if not all(0 < length <= row for length in lengths):
        raise ValueError(f"rows of {row} tokens hold 1 to {row}, got {list(lengths)}")
    ends = [end for i, length in enumerate(lengths) for end in (i * row + length, (i + 1) * row)]
    return np.asarray(sorted({0, *ends}), np.uint32)


def _captions_ids(caption_lengths: Sequence[int]) -> IdArray:
    """Return the positions of a batch of captions, int32 [N, padded longest, 3]."""
    ids = np.zeros((len(caption_lengths), padded(max(caption_lengths)), 3), np.int32)
    for item, length in zip(ids, caption_lengths, strict=True):
        item[: padded(length)] = caption_ids(length)
    return ids


def _check_captions(spec: RopeSpec, caption_lengths: Sequence[int]) -> None:
    limit = max_caption_tokens(spec.axes_lens)
    if not caption_lengths:
        raise ValueError("a batch needs at least one caption, got none")
    for index, length in enumerate(caption_lengths):
        if not 1 <= length <= limit:
            raise ValueError(
                f"caption {index} must have 1 to {limit} tokens (axes_lens {spec.axes_lens}), got {length}"
            )


def _read_only(table: FloatArray) -> FloatArray:
    # Cached tables are shared between requests.
    table.flags.writeable = False
    return table
