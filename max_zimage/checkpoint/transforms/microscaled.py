"""Weights whose scales stand for a few numbers of a row: MXFP8 (32 a scale) and NVFP4 (16 a scale, and one for all).

On Blackwell GPUs the scales of blocks are taken in tiles of 128 rows by 4 blocks ("swizzled"), and ComfyUI writes them
so, padded to whole tiles; NVIDIA's ModelOpt writes them row by row.

References: Comfy-Org/comfy-kitchen comfy_kitchen/backends/eager/quantization.py; NVIDIA/TensorRT-Model-Optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.small_floats import E2M1, E4M3, E8M0
from max_zimage.checkpoint.tensors import Files, StoredTensor
from max_zimage.checkpoint.transforms.base import Decoded
from max_zimage.checkpoint.transforms.scaled import row_scales
from max_zimage.errors import CheckpointError

MXFP8_BLOCK, NVFP4_BLOCK = 32, 16
_TILE_ROWS, _TILE_BLOCKS = 128, 4


@dataclass(frozen=True)
class Mxfp8(Decoded):
    """A weight in float8 (e4m3), times a power of two for every 32 inputs; every number is exact in float32.

    Attributes:
        base: [out, in] of F8_E4M3.
        scales: Of blocks, as bytes of E8M0 in tiles.
    """

    base: StoredTensor
    scales: StoredTensor

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        codes = tile_rows(self.scales, begin, end, self.shape[1] // MXFP8_BLOCK, files)
        values = self.base.rows(begin, end, files)
        _checked(self, values.reshape(len(values), -1, MXFP8_BLOCK), E8M0[codes])
        return values


@dataclass(frozen=True)
class Nvfp4(Decoded):
    """A weight of two numbers a byte, times a scale for every 16 inputs and one for the matrix.

    Attributes:
        packed: [out, in / 2] of bytes.
        scales: Of blocks, F8_E4M3, in tiles or [out, in / 16].
        scale: One number.
        swizzled: Whether `scales` stands in tiles.
        high_first: Whether the first of two numbers is in the upper half of its byte.
    """

    packed: StoredTensor
    scales: StoredTensor
    scale: StoredTensor
    swizzled: bool
    high_first: bool

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        codes = self.packed.codes(begin, end, files)
        values = nibbles(codes, E2M1, high_first=self.high_first)
        blocks = self.shape[1] // NVFP4_BLOCK
        if self.swizzled:
            scales = tile_rows(self.scales, begin, end, blocks, files)
        else:
            scales = self.scales.codes(begin, end, files)
        _checked(self, values.reshape(len(values), blocks, NVFP4_BLOCK), E4M3[scales])
        values *= row_scales(self.scale, begin, end, files)
        return values


def nibbles(codes: npt.NDArray[np.uint8], table: FloatArray, *, high_first: bool) -> FloatArray:
    """Numbers of two codes a byte.

    Args:
        codes: [rows, bytes].
        table: What the 16 codes stand for.
        high_first: Whether a byte's upper half comes first.

    Returns:
        float32 [rows, 2 bytes].
    """
    halves = (codes >> 4, codes & 15) if high_first else (codes & 15, codes >> 4)
    return table[np.stack(halves, axis=-1)].reshape(len(codes), -1)


def padded(rows: int, blocks: int) -> tuple[int, int]:
    """Rows and blocks of whole tiles."""
    return -(-rows // _TILE_ROWS) * _TILE_ROWS, -(-blocks // _TILE_BLOCKS) * _TILE_BLOCKS


def in_tiles(scales: StoredTensor, rows: int, blocks: int) -> StoredTensor:
    """The same, whatever shape the file gives it, with the rows and blocks of whole tiles."""
    return replace(scales, shape=padded(rows, blocks))


def tile_rows(scales: StoredTensor, begin: int, end: int, blocks: int, files: Files) -> npt.NDArray[np.uint8]:
    """Scales of some rows, out of their tiles.

    Args:
        scales: From `in_tiles`.
        begin: First row.
        end: The row behind the last one.
        blocks: Of a row, without padding.
        files: Where they are read from.

    Returns:
        The codes, [end - begin, blocks].
    """
    first = begin // _TILE_ROWS * _TILE_ROWS
    last = -(-end // _TILE_ROWS) * _TILE_ROWS
    codes = scales.codes(first, last, files)
    # A tile is 32 rows of 16 bytes: 4 blocks of one row, then those of the row 32 further on.
    tiles = codes.reshape(-1, scales.shape[1] // _TILE_BLOCKS, 32, 4, _TILE_BLOCKS)
    ordered = tiles.transpose(0, 3, 2, 1, 4).reshape(last - first, -1)
    return ordered[begin - first : end - first, :blocks]


def _checked(tensor: Decoded, values: FloatArray, scales: FloatArray) -> None:
    """Multiply blocks by their scales, in place."""
    if not (scales >= 0).all():
        raise CheckpointError(f"{tensor.file}: {tensor.name} has a block whose scale is no number, or negative")
    values *= scales[..., np.newaxis]
