"""Floating-point numbers of eight bits and fewer: what every code stands for.

References: OCP 8-bit Floating Point Specification (E4M3, E5M2); OCP Microscaling Formats (E2M1, E8M0).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def _table(exponent_bits: int, fraction_bits: int, bias: int) -> FloatArray:
    """Every code of a sign, an exponent and a fraction, as if none stood for an infinity or for no number."""
    codes = np.arange(1 << (1 + exponent_bits + fraction_bits))
    exponents = (codes >> fraction_bits) & ((1 << exponent_bits) - 1)
    fractions = codes & ((1 << fraction_bits) - 1)
    whole = np.where(exponents > 0, fractions + (1 << fraction_bits), fractions)
    sizes = whole * np.exp2(np.maximum(exponents, 1) - float(bias + fraction_bits))
    return np.where(codes >> (exponent_bits + fraction_bits), -sizes, sizes).astype(np.float32)


def _e4m3() -> FloatArray:
    values = _table(4, 3, 7)
    values[[0x7F, 0xFF]] = np.nan
    return values


def _e5m2() -> FloatArray:
    values = _table(5, 2, 15)
    values[0x7C], values[0xFC] = np.inf, -np.inf
    values[[*range(0x7D, 0x80), *range(0xFD, 0x100)]] = np.nan
    return values


def _e8m0() -> FloatArray:
    values = np.exp2(np.arange(256) - 127.0)
    values[255] = np.nan
    return values.astype(np.float32)


E4M3 = _e4m3()
"""float32 [256]: 1 bit sign, 4 bits exponent, 3 bits fraction; no infinities, 0x7F and 0xFF are NaN."""
E5M2 = _e5m2()
"""float32 [256]: the upper byte of a float16."""
E8M0 = _e8m0()
"""float32 [256]: powers of two without a sign, 2^(code - 127); 255 is NaN."""
E2M1 = _table(2, 1, 1)
"""float32 [16]: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and the same below zero."""

for _values in (E4M3, E5M2, E8M0, E2M1):
    _values.flags.writeable = False
