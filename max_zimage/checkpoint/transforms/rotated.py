"""Integers whose rows were rotated before they were rounded ("ConvRot"): rotated back, then scaled.

The rotation of a group of 4^k inputs is a Hadamard matrix, a Kronecker power of one of four rows, divided by 2^k. It is
symmetric and its own inverse. On integers it is exact in float32, so only the scale's product is rounded.

Reference: Comfy-Org/comfy-kitchen comfy_kitchen/tensor/int8_utils.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files
from max_zimage.checkpoint.transforms.scaled import Scaled

GROUPS = (16, 64, 256, 1024)
"""Numbers of inputs that are rotated together."""


@dataclass(frozen=True)
class Rotated(Scaled):
    """An int8 weight whose groups of inputs are rotated.

    Attributes:
        group: Inputs of a group.
    """

    group: int

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        values = rotated(self.base.rows(begin, end, files), self.group)
        values *= self.scales(begin, end, files)
        return values


def rotated(rows: FloatArray, group: int) -> FloatArray:
    """Rotate groups of the last axis.

    Args:
        rows: float32 [rows, inputs].
        group: A power of 4 that divides the inputs.
    """
    stride = 1
    while stride < group:
        four = rows.reshape(-1, 4, stride)
        # One of a row's four signs is a minus, and it goes from the last place to the first.
        rows = (four.sum(axis=1, keepdims=True) - 2 * four[:, ::-1]).reshape(rows.shape)
        stride *= 4
    return rows * np.float32(group**-0.5)
