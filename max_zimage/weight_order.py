"""The order and the bits of weights, as the graphs want them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphs.ops import packed_shape
from max_zimage.weight_names import Packing

Bits = npt.NDArray[np.uint16] | npt.NDArray[np.float32]
"""Numbers of float32, or the bits of bfloat16."""


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to bfloat16, to the nearest and ties to even.

    Args:
        values: float32 numbers in any shape; NaN stays NaN.

    Returns:
        The upper halves of the rounded numbers' bits, in the same shape.
    """
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    # Rounding could carry a NaN's bits into those of an infinity or a zero; the quiet bit keeps it one.
    kept = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(values), kept, rounded).astype(np.uint16)


def bring_apart(rows: Bits, heads: int, head_dim: int) -> None:
    """Put the first numbers of a head's pairs before the second ones, in place; a head at a time needs little memory.

    Args:
        rows: [outputs, inputs], or [outputs, 1] of a vector.
        heads: How many of the leading heads have pairs.
        head_dim: Rows of a head.
    """
    for head in range(heads):
        pairs = rows[head * head_dim : (head + 1) * head_dim]
        pairs[:] = np.concatenate([pairs[0::2], pairs[1::2]])


def pack(matrix: npt.NDArray[np.uint16], packing: Packing) -> npt.NDArray[np.uint16]:
    """Order a matrix as the kernels of `graphs.ops` take it.

    Args:
        matrix: bfloat16's bits [outputs, inputs].
        packing: "panels": 32 outputs side by side. "gated": of the matrix's two halves 16 each.

    Returns:
        [panels, pairs, 64], see `graphs.ops.packed_shape`.
    """
    outputs, inputs = matrix.shape
    shape = packed_shape(inputs, outputs)
    halves = 1 if packing == "panels" else 2
    # [half, panel, output of the half's share, pair, of the pair] -> [panel, pair, half, output, of the pair]
    parts = matrix.reshape(halves, shape[0], -1, shape[1], 2)
    return np.ascontiguousarray(parts.transpose(1, 3, 0, 2, 4)).reshape(shape)
