"""What adapters add to a weight, some rows at a time, in float32.

Every kind names its tensors and multiplies on demand: nothing of a matrix's size is kept. Rows are those of the
module that the adapter names, in the order of the files.

References: the LoRA, LyCORIS (LoHa, LoKr) papers; ComfyUI comfy/weight_adapter; PEFT src/peft/tuners/lora/layer.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from max_zimage.checkpoint.adapters.values import numbers
from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, StoredTensor

Rows = Callable[[int, int], FloatArray]
"""Takes a first row and the one behind the last; returns float32 [rows, inputs]."""


@dataclass(frozen=True)
class Delta(ABC):
    """A change of a module's weight or bias.

    Attributes:
        factor: What the product of the tensors is multiplied with: alpha / rank, mostly.
    """

    factor: float

    @abstractmethod
    def ready(self, files: Files, scale: float) -> Rows:
        """Read what every row needs.

        Args:
            files: Where numbers are read from.
            scale: Multiplies the change, besides the factor.
        """


@dataclass(frozen=True)
class LowRank(Delta):
    """LoRA: up times down.

    Attributes:
        down: [rank, inputs].
        up: [outputs, rank].
    """

    down: StoredTensor
    up: StoredTensor

    @override
    def ready(self, files: Files, scale: float) -> Rows:
        down, factor = numbers(self.down, files), np.float32(self.factor * scale)
        return lambda begin, end: np.asarray((numbers(self.up, files, begin, end) * factor) @ down, np.float32)


@dataclass(frozen=True)
class Hadamard(Delta):
    """LoHa: two low-rank products, multiplied number by number.

    Attributes:
        w1_a: [outputs, rank].
        w1_b: [rank, inputs].
        w2_a: As w1_a.
        w2_b: As w1_b.
    """

    w1_a: StoredTensor
    w1_b: StoredTensor
    w2_a: StoredTensor
    w2_b: StoredTensor

    @override
    def ready(self, files: Files, scale: float) -> Rows:
        w1_b, w2_b = numbers(self.w1_b, files), numbers(self.w2_b, files)
        factor = np.float32(self.factor * scale)

        def rows(begin: int, end: int) -> FloatArray:
            first = (numbers(self.w1_a, files, begin, end) * factor) @ w1_b
            return np.asarray(first * (numbers(self.w2_a, files, begin, end) @ w2_b))

        return rows


@dataclass(frozen=True)
class Kronecker(Delta):
    """LoKr: the Kronecker product of two matrices, each one tensor or the product of two.

    Attributes:
        w1: [a, c], or [a, rank] and [rank, c].
        w2: [b, d] likewise; the result is [a b, c d].
    """

    w1: tuple[StoredTensor, ...]
    w2: tuple[StoredTensor, ...]

    @override
    def ready(self, files: Files, scale: float) -> Rows:
        w1 = _product(self.w1, files) * np.float32(self.factor * scale)
        w2 = _product(self.w2, files)

        def rows(begin: int, end: int) -> FloatArray:
            outer, inner = np.divmod(np.arange(begin, end), len(w2))
            product = w1[outer][:, :, np.newaxis] * w2[inner][:, np.newaxis, :]
            return np.asarray(product.reshape(end - begin, -1))

        return rows


@dataclass(frozen=True)
class Difference(Delta):
    """The change itself.

    Attributes:
        values: In the shape of what is changed.
    """

    values: StoredTensor

    @override
    def ready(self, files: Files, scale: float) -> Rows:
        factor = np.float32(self.factor * scale)
        return lambda begin, end: numbers(self.values, files, begin, end) * factor


def _product(factors: tuple[StoredTensor, ...], files: Files) -> FloatArray:
    first = numbers(factors[0], files)
    return first if len(factors) == 1 else first @ numbers(factors[1], files)
