"""A change of one tensor of a module: a delta, and what DoRA makes of the sum.

DoRA keeps a weight's direction and its size apart: the sum of weight and delta is brought to a length of its own, per
output (a row) or per input (a column). Two lengths of what stands there before are in use, and a file does not say
which one its trainer meant:

- `lora_magnitude_vector`, as PEFT writes it, takes that of the sum's rows, as in the paper.
- `dora_scale`, as LyCORIS writes it: of one number an output, the length of the unchanged weight's rows; of one number
  an input, that of the sum's columns. Both as ComfyUI reads these files, with float32's epsilon added.

References: PEFT src/peft/tuners/lora/dora.py; ComfyUI comfy/weight_adapter/base.py, weight_decompose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from max_zimage.checkpoint.adapters.deltas import Delta, Rows
from max_zimage.checkpoint.adapters.modules import Target
from max_zimage.checkpoint.adapters.values import numbers
from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, StoredTensor

_CHUNK = 1 << 20  # numbers of a delta that are made at a time

Added = Callable[[int, int, FloatArray], FloatArray]
"""Takes a first row, the one behind the last, and those rows of the weight; returns what is added to them."""


@dataclass(frozen=True)
class Magnitude:
    """DoRA's lengths.

    Attributes:
        values: One for each output or input.
        per: Which of the two.
        of_sum: Whether what they replace is the length of the weight with the delta, or of the weight alone.
        epsilon: Added to that length.
    """

    values: StoredTensor
    per: Literal["output", "input"]
    of_sum: bool
    epsilon: float


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor.

    Attributes:
        module: Its module's name, for messages.
        target: Which rows of which tensors it changes.
        delta: What is added, or what the delta's numbers are put in place of.
        magnitude: DoRA's part.
        replaces: Whether the delta is the new tensor and not the difference; so PEFT keeps trained biases.
    """

    module: str
    target: Target
    delta: Delta
    magnitude: Magnitude | None = None
    replaces: bool = False

    @property
    def kind(self) -> tuple[object, ...]:
        """What two changes must have in common to be able to do the same."""
        magnitude = self.magnitude
        return (self.replaces, *(() if magnitude is None else (magnitude.per, magnitude.of_sum, magnitude.epsilon)))

    @property
    def is_nothing(self) -> bool:
        """Whether it leaves every number as it is, because its alpha is 0."""
        return self.delta.factor == 0 and self.magnitude is None

    @property
    def needs_whole(self) -> bool:
        """Whether its rows cannot be made without all rows of the module's weight."""
        return self.magnitude is not None and self.magnitude.per == "input"

    def ready(self, files: Files, scale: float, whole: Rows) -> Added:
        """Read what every row needs.

        Args:
            files: Where numbers are read from.
            scale: The user's.
            whole: The module's weight, as the checkpoint has it.
        """
        if self.magnitude is None and not self.replaces:
            rows = self.delta.ready(files, scale)
            return lambda begin, end, weight: rows(begin, end)
        rows, scale32 = self.delta.ready(files, 1.0), np.float32(scale)
        if self.magnitude is None:
            return lambda begin, end, weight: scale32 * (rows(begin, end) - weight)
        by_input = self._column_factors(self.magnitude, files, rows, whole) if self.needs_whole else None
        lengths = numbers(self.magnitude.values, files).reshape(-1, 1)
        of_sum, epsilon = self.magnitude.of_sum, np.float32(self.magnitude.epsilon)

        def added(begin: int, end: int, weight: FloatArray) -> FloatArray:
            summed = weight + rows(begin, end)
            if by_input is not None:
                factors = by_input
            else:
                there = np.sqrt(_squares(summed if of_sum else weight, axis=1)).astype(np.float32)
                factors = lengths[begin:end] / (there[:, np.newaxis] + epsilon)
            return np.asarray(scale32 * (summed * factors - weight))

        return added

    def _column_factors(self, magnitude: Magnitude, files: Files, rows: Rows, whole: Rows) -> FloatArray:
        squares = np.zeros(self.target.shape[1])
        for stretch in self.target.stretches:
            for begin, end in blocks(stretch.begin, stretch.end, self.target.shape[1]):
                weight = whole(begin, end)
                squares += _squares(weight + rows(begin, end) if magnitude.of_sum else weight, axis=0)
        there = np.sqrt(squares).astype(np.float32) + np.float32(magnitude.epsilon)
        return np.asarray(numbers(magnitude.values, files).reshape(1, -1) / there)


def blocks(begin: int, end: int, width: int) -> Iterator[tuple[int, int]]:
    """Rows that are made at a time.

    They depend on nothing but the tensor in diffusers' naming, so that a product of the same rows is always the same
    product, to the bit, whatever the rows are stacked with in a file.
    """
    step = max(1, _CHUNK // width)
    for first in range(begin, end, step):
        yield first, min(first + step, end)


def _squares(values: FloatArray, axis: int) -> FloatArray:
    """Sums of squares, in float64."""
    return np.asarray(np.sum(np.square(values, dtype=np.float64), axis=axis))
