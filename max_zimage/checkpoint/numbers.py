"""What the numbers of a file are stored as, and how they become those of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from max_zimage.checkpoint.small_floats import E4M3, E5M2, E8M0
from max_zimage.device.dtypes import ModelDtype, bfloat16_bits

FloatArray = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16] | FloatArray
"""Numbers of float32, or the bits of bfloat16: what the model has its weights in."""
Read = Callable[[int, int], Bits]
"""Rows of a matrix, from one to another that is not among them; several threads ask for some at once."""


def rows_of(matrix: Bits) -> Read:
    """Rows of a matrix that is in memory."""
    return lambda begin, end: matrix[begin:end]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A dtype of files.

    Attributes:
        raw: What numpy reads.
        decode: Writes what was read as float32.
        runs_as: The model's dtype that such a checkpoint is run in where nothing else is asked for.
        model_dtype: The model's dtype whose bits these are; None for numbers that are converted in any case.
    """

    raw: np.dtype[Any]
    decode: Callable[[npt.NDArray[Any], FloatArray], None]
    runs_as: ModelDtype
    model_dtype: ModelDtype | None = None

    def convert(self, raw: npt.NDArray[Any], target: Bits) -> None:
        """Write numbers in the model's dtype, rounded to the nearest, ties to even."""
        if target.dtype == np.float32:
            self.decode(raw, target.view(np.float32))
        elif self.model_dtype == "bfloat16":
            target[:] = raw
        else:
            values = np.empty(raw.size, np.float32)
            self.decode(raw, values)
            round_to(target, values)


def round_to(target: Bits, values: FloatArray) -> None:
    """Write float32 numbers in the model's dtype, rounded to the nearest, ties to even."""
    target[:] = values if target.dtype == np.float32 else bfloat16_bits(values)


def _copy(raw: npt.NDArray[Any], values: FloatArray) -> None:
    values[:] = raw


def _from_bfloat16(raw: npt.NDArray[Any], values: FloatArray) -> None:
    np.left_shift(raw, np.uint32(16), out=values.view(np.uint32), dtype=np.uint32)


def _looked_up(table: FloatArray) -> Callable[[npt.NDArray[Any], FloatArray], None]:
    def decode(raw: npt.NDArray[Any], values: FloatArray) -> None:
        np.take(table, raw, out=values)

    return decode


_BYTES = np.dtype(np.uint8)

STORED: Mapping[str, Stored] = {
    "F32": Stored(raw=np.dtype("<f4"), decode=_copy, runs_as="float32", model_dtype="float32"),
    "BF16": Stored(raw=np.dtype("<u2"), decode=_from_bfloat16, runs_as="bfloat16", model_dtype="bfloat16"),
    "F16": Stored(raw=np.dtype("<f2"), decode=_copy, runs_as="float32"),
    # Three and two bits of fraction are exact in bfloat16.
    "F8_E4M3": Stored(raw=_BYTES, decode=_looked_up(E4M3), runs_as="bfloat16"),
    "F8_E5M2": Stored(raw=_BYTES, decode=_looked_up(E5M2), runs_as="bfloat16"),
}
"""The word of safetensors for a dtype -> how it is read. A parameter in any other is refused."""

CODED: Mapping[str, Stored] = {
    "F8_E8M0": Stored(raw=_BYTES, decode=_looked_up(E8M0), runs_as="bfloat16"),
    "I8": Stored(raw=np.dtype(np.int8), decode=_copy, runs_as="bfloat16"),
    "U8": Stored(raw=_BYTES, decode=_copy, runs_as="bfloat16"),
}
"""The same of what only means something together with other tensors; `transforms` make numbers of them."""

READ: Mapping[str, Stored] = {**STORED, **CODED}
