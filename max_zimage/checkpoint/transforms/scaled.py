"""Weights in units of a scale: one for a matrix, one for each row, or one for each block of a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, StoredTensor
from max_zimage.checkpoint.transforms.base import Decoded


@dataclass(frozen=True)
class Scaled(Decoded):
    """A weight times one scale, or a scale for each row; rounded once, for codes are exact in float32.

    Attributes:
        base: The codes, [out, in].
        scale: One number, or as many as there are rows.
    """

    base: StoredTensor
    scale: StoredTensor

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        values = self.base.rows(begin, end, files)
        values *= self.scales(begin, end, files)
        return values

    def scales(self, begin: int, end: int, files: Files) -> FloatArray:
        """Scales of some rows, [end - begin, 1], or one for all."""
        return row_scales(self.scale, begin, end, files)


@dataclass(frozen=True)
class BlockScaled(Decoded):
    """A weight times a scale for each block.

    Attributes:
        base: The codes, [out, in].
        scale: [blocks along out, blocks along in]; the last ones may be cut.
        block: Rows and columns of a block.
    """

    base: StoredTensor
    scale: StoredTensor
    block: tuple[int, int]

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        height, width = self.block
        first = begin // height
        scales = self.scale.rows(first, -(-end // height), files)
        wide = np.repeat(scales, width, axis=1)[:, : self.shape[1]]
        values = self.base.rows(begin, end, files)
        values *= wide[np.arange(begin, end) // height - first]
        return values


def row_scales(scale: StoredTensor, begin: int, end: int, files: Files) -> FloatArray:
    """Scales of some rows of a matrix, [end - begin, 1] or one for all, [1, 1]."""
    if scale.size == 1:
        return scale.rows(0, 1, files).reshape(1, 1)
    return scale.rows(begin, end, files).reshape(-1, 1)


def scaled(weight: StoredTensor, scale: StoredTensor, kind: str) -> Scaled:
    """A weight of fp8 or int8 times its scale, under the weight's name."""
    return Scaled(weight.file, weight.name, "F32", weight.shape, kind, weight, scale)
