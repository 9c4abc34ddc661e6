"""Integers whose rows were rotated before they were rounded ("ConvRot"): rotated back, then scaled.

The rotation of a group of 4^k inputs is a Hadamard matrix, a Kronecker power of one of four rows, divided by 2^k. It is
symmetric and its own inverse. On integers it is exact in float32, so only the scale's product is rounded.

Reference: Comfy-Org/comfy-kitchen comfy_kitchen/tensor/int8_utils.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

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
        rows: float32 [rows, inputs], whole numbers of int8: sums of a group are exact in any order.
        group: One of `GROUPS` that divides the inputs.
    """
    turned = (rows.reshape(-1, group) @ _hadamard(group)).reshape(rows.shape)
    turned *= np.float32(group**-0.5)
    return turned


@cache
def _hadamard(group: int) -> FloatArray:
    """float32 [group, group] of ones and minus ones."""
    four = np.ones((4, 4), np.float32) - 2 * np.eye(4, dtype=np.float32)[::-1]
    return four if group == 4 else np.kron(_hadamard(group // 4), four)
