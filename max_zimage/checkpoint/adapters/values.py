"""Numbers of an adapter's tensors as float32, whatever they are stored as.

Adapters hold more dtypes than checkpoints that are loaded: float8 without a scale, and whole numbers where the number
is an alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, StoredTensor

_RAW: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
}
_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E4M3": ("u1", 0x7F),  # has no infinity, and one NaN
    "F8_E5M2": ("u1", 0x7C),
}
FLOATS = tuple(_EXPONENTS)
"""Dtypes of what is multiplied and added."""
SCALARS = tuple(_RAW)
"""Dtypes of an alpha or a scale."""


def numbers(tensor: StoredTensor, files: Files, begin: int = 0, end: int | None = None) -> FloatArray:
    """Rows of a tensor.

    Args:
        tensor: In one of `SCALARS`.
        files: Where it is read from.
        begin: First row; a scalar is one row.
        end: The row behind the last one; None for all.

    Returns:
        float32 [rows, all other dimensions as one].
    """
    count = tensor.shape[0] if tensor.shape else 1
    end = count if end is None else end
    width = tensor.size // count
    kind = np.dtype(_RAW[tensor.dtype])
    start = tensor.start + begin * width * kind.itemsize
    raw = np.frombuffer(files[tensor.file], kind, (end - begin) * width, start)
    return _decoded(raw, tensor.dtype).reshape(end - begin, width)


def finite(tensor: StoredTensor, files: Files) -> bool:
    """Whether a tensor holds neither NaN nor infinity, told by its bits."""
    if tensor.dtype not in _EXPONENTS:
        return True
    kind, exponent = _EXPONENTS[tensor.dtype]
    bits = np.frombuffer(files[tensor.file], kind, tensor.size, tensor.start)
    mask = bits.dtype.type(exponent)
    return not tensor.size or int((bits & mask).max()) != exponent


def _decoded(raw: npt.NDArray[np.generic], dtype: str) -> FloatArray:
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F8_E4M3":
        return np.asarray(_float8_e4m3()[raw.astype(np.intp)])
    if dtype == "F8_E5M2":  # the upper half of a float16
        return (raw.astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32)


@cache
def _float8_e4m3() -> FloatArray:
    """Its 256 numbers: a sign, 4 bits of exponent with a bias of 7, 3 of mantissa; all ones are NaN."""
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 15, (bits & 7) / 8
    sizes = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))
    sizes[[0x7F, 0xFF]] = np.nan
    return np.asarray(np.where(bits < 128, sizes, -sizes), np.float32)
