"""What numbers are stored as in files that are written: float32 rows in, bytes out, each number rounded once.

References: float8 e4m3 as in OCP's 8-bit floating point specification (no infinities, 448 the largest); blocks of the
GGUF types as the gguf library makes them (gguf/quants.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.device.dtypes import bfloat16_bits
from max_zimage.errors import CheckpointError

Raw = npt.NDArray[Any]

E4M3_MAX = 448.0


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """A way to store numbers.

    Attributes:
        word: What safetensors, or GGUF in its types, calls it.
        encode: float32 rows [rows, …] -> what is stored, one after another.
        block: How many numbers of a row are stored together.
        block_bytes: Their bytes.
        limit: From this size on a number would become infinite.
        finite: Whether there is nothing to store infinities and NaN as.
    """

    word: str
    encode: Callable[[FloatArray], Raw]
    block: int = 1
    block_bytes: int
    limit: float = np.inf
    finite: bool = False

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor; its rows must be whole blocks."""
        return prod(shape) // self.block * self.block_bytes

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether its rows are whole blocks."""
        return self.block == 1 or (len(shape) > 1 and shape[-1] % self.block == 0)

    def checked(self, name: str, rows: FloatArray) -> Raw:
        """Encode rows of a tensor.

        Raises:
            CheckpointError: If a number is beyond what can be stored.
        """
        sizes = np.abs(rows)
        if (self.finite or self.limit < np.inf) and not sizes.max(initial=0) < self.limit:
            finite = np.isfinite(rows)
            if self.finite and not finite.all():
                raise CheckpointError(
                    f"{name} holds {np.count_nonzero(~finite)} numbers that are NaN or infinite, which {self.word} "
                    "cannot store; `max-zimage info --check-weights` lists all such tensors of the input"
                )
            if large := np.count_nonzero(finite & (sizes >= self.limit)):
                raise CheckpointError(
                    f"{name} holds {large} numbers of up to {sizes[finite].max():.4g}, which would become infinite in "
                    f"{self.word}; choose another type"
                )
        return self.encode(rows)


def e4m3_bits(values: FloatArray) -> npt.NDArray[np.uint8]:
    """Round to float8 e4m3, to the nearest and ties to even; what is beyond 448 becomes 448.

    Args:
        values: float32 numbers in any shape, none of them NaN.

    Returns:
        Their codes, in the same shape.
    """
    bits = values.view(np.uint32)
    # The upper half has four bits more than are kept; whether anything is below them matters, and not what.
    upper = (bits >> np.uint32(16)).astype(np.uint16)
    upper |= (bits & np.uint32(0xFFFF)) != 0
    return _e4m3_of_upper_halves()[upper]


@cache
def _e4m3_of_upper_halves() -> npt.NDArray[np.uint8]:
    """The code of every float32 number whose lower half is zero, by its upper half."""
    values = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    sizes = np.minimum(np.abs(values), np.float32(E4M3_MAX)).view(np.uint32)
    # 20 of the 23 bits of the fraction go; exponents count from 7 where float32 counts from 127.
    rounded = (sizes + (np.uint32(0x7_FFFF) + ((sizes >> np.uint32(20)) & np.uint32(1)))) >> np.uint32(20)
    # Below 2^-6 the codes count multiples of 2^-9; numpy rounds ties to even, too, and 8 of them are the first normal.
    tiny = sizes < np.float32(2.0**-6).view(np.uint32)
    multiples = np.rint(np.where(tiny, sizes, 0).view(np.float32) * np.float32(2.0**9)).astype(np.uint32)
    codes = np.where(tiny, multiples, rounded - np.uint32((127 - 7) << 3))
    return (codes | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def e4m3(scale: np.float32) -> Encoding:
    """float8 e4m3 in units of a scale."""

    def encode(rows: FloatArray) -> Raw:
        return e4m3_bits(rows / scale)

    return Encoding(word="F8_E4M3", encode=encode, block_bytes=1, finite=True)


def _quantized(word: str, block_bytes: int) -> Encoding:
    """A type of GGUF in blocks of 32 numbers along a row."""

    def encode(rows: FloatArray) -> Raw:
        from gguf import GGMLQuantizationType, quants

        return quants.quantize(rows, GGMLQuantizationType[word])

    return Encoding(word=word, encode=encode, block=32, block_bytes=block_bytes, finite=True)


def _float32(rows: FloatArray) -> Raw:
    return rows


def _float16(rows: FloatArray) -> Raw:
    return rows.astype(np.float16)


FLOATS: Mapping[str, Encoding] = {
    "float32": Encoding(word="F32", encode=_float32, block_bytes=4),
    # Where rounding goes beyond the largest finite number.
    "bfloat16": Encoding(
        word="BF16", encode=bfloat16_bits, block_bytes=2, limit=float(np.uint32(0x7F7F_8000).view(np.float32))
    ),
    "float16": Encoding(word="F16", encode=_float16, block_bytes=2, limit=65520.0),
}
"""What safetensors and GGUF both store, by the names of numpy and torch."""

BLOCKS: Mapping[str, Encoding] = {
    "q8_0": _quantized("Q8_0", 34),
    "q5_0": _quantized("Q5_0", 22),
    "q5_1": _quantized("Q5_1", 24),
    "q4_0": _quantized("Q4_0", 18),
    "q4_1": _quantized("Q4_1", 20),
}
"""Of GGUF alone."""

FP8 = "fp8_scaled"
TYPES = (*FLOATS, FP8, *BLOCKS)
"""What can be asked for."""

_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_k", "iq", "tq"),
        "which llama.cpp's llama-quantize makes; write a GGUF file with --type bfloat16, and give it to that",
    ),
    (
        ("nvfp4", "mxfp8", "mxfp4", "int8", "convrot", "int4"),
        "which convert_to_quant (ctq) makes of the original layout; write that with --type bfloat16 first",
    ),
    (("fp8", "float8", "e4m3", "e5m2"), f"ComfyUI's float8 with a scale for each matrix is {FP8}"),
    (("nf4", "fp4", "bnb"), "which bitsandbytes makes when it loads a model"),
)


def type_problem(name: str) -> str | None:
    """Why a type cannot be written; None if it can.

    Args:
        name: As it was asked for.
    """
    if name in TYPES:
        return None
    asked = name.lower()
    why = next((f", {why}" for starts, why in _OTHERS if asked.startswith(starts)), "")
    return f"the type must be one of {', '.join(TYPES)}, got {name!r}{why}"
