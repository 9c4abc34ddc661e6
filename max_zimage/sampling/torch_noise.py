"""Normal noise as torch's generator on a CPU draws it, to the bit and without torch: seeds of other programs repeat.

The generator, exactly:

1. Words: MT19937, seeded with the seed's lowest 32 bits; of each word the lowest 24 bits make a number in [0, 1).
2. Sixteen numbers at a time become sixteen normal values (Box-Muller, float32): with u = 1 - number k and v = number
   k + 8, values k and k + 8 are sqrt(-2 ln u) · cos(2 pi v) and sqrt(-2 ln u) · sin(2 pi v). Where the count is no
   multiple of 16, the last sixteen values are drawn again, behind all others.
3. ln, cos and sin are the Cephes library's in float32, in the order of operations that torch's kernel for AVX2 has,
   with its fused multiplications and additions. Without AVX2 torch itself draws other last bits.

Checked against torch 2.13 for 2^20 values: all bits equal.

Reference: torch aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill), avx_mathfun.h; aten/src/ATen/core/
MT19937RNGEngine.h; Cephes logf, sinf, cosf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

_GROUP, _HALF = 16, 8
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LN_2 = (-2.12194440e-4, 0.693359375)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_MINUS_PI_4 = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)


def torch_normal(seed: int, shape: tuple[int, ...], before: Sequence[int] = ()) -> Float32:
    """What `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` draws in float32.

    Args:
        seed: 0 to 2**63 - 1; torch looks at its lowest 32 bits alone.
        shape: Shape of the result, of at least 16 values.
        before: How many values the generator has drawn before, result by result; at least 16 each.

    Raises:
        ValueError: If there are fewer values: torch draws those in another way.
    """
    count = math.prod(shape)
    if count < _GROUP:
        raise ValueError(f"torch draws fewer than {_GROUP} values in another way, got {list(shape)}")
    rest, behind = _rest(count), sum(each + _rest(each) for each in before)
    words = np.frombuffer(np.random.RandomState(seed % 2**32).bytes(4 * (behind + count + rest)), "<u4")[behind:]
    numbers = (words & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)
    whole = count // _GROUP * _GROUP
    values = numbers[:count].copy()
    values[:whole] = _normal(values[:whole])
    if rest:
        values[-_GROUP:] = _normal(numbers[count:])
    return values.reshape(shape)


def _rest(count: int) -> int:
    """Words that so many values take beyond one each."""
    return _GROUP if count % _GROUP else 0


def _normal(numbers: Float32) -> Float32:
    groups = numbers.reshape(-1, _GROUP)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - groups[:, :_HALF]))
    sine, cosine = _sin_cos(np.float32(2 * math.pi) * groups[:, _HALF:])
    return np.concatenate([radius * cosine, radius * sine], axis=1).reshape(-1)


def _log(x: Float32) -> Float32:
    """Natural logarithm of values in (0, 1]."""
    bits = x.view(np.int32)
    exponent = ((bits >> 23) - 126).astype(np.float32)
    mantissa = ((bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000)).view(np.float32)
    is_small = mantissa < np.float32(math.sqrt(0.5))
    exponent = exponent - is_small.astype(np.float32)
    m = (mantissa - np.float32(1)) + np.where(is_small, mantissa, np.float32(0))
    square = m * m
    y = _polynomial(m, _LOG) * m
    y = _fused(y, square, exponent * np.float32(_LN_2[0])) - square * np.float32(0.5)
    return _fused(exponent, np.float32(_LN_2[1]), np.asarray(m + y, np.float32))


def _sin_cos(x: Float32) -> tuple[Float32, Float32]:
    """Sine and cosine of angles in [0, 2 pi]."""
    octant = ((x * np.float32(4 / math.pi)).astype(np.int32) + 1) & ~1
    turns = octant.astype(np.float32)
    for part in _MINUS_PI_4:
        x = _fused(turns, np.float32(part), x)
    square = x * x
    half: Float32 = square * np.float32(-0.5)
    cosine = _fused(_polynomial(square, _COS) * square, square, half) + np.float32(1)
    sine = _fused(_polynomial(square, _SIN) * square, x, x)
    is_direct = octant & 2 == 0
    first, second = np.where(is_direct, sine, cosine), np.where(is_direct, cosine, sine)
    return np.where(octant & 4 != 0, -first, first), np.where(~(octant - 2) & 4 != 0, -second, second)


def _polynomial(x: Float32, terms: tuple[float, ...]) -> Float32:
    total = np.full_like(x, terms[0])
    for term in terms[1:]:
        total = _fused(total, x, np.float32(term))
    return total


def _fused(a: Float32, b: Float32 | np.float32, c: Float32 | np.float32) -> Float32:
    """A · b + c in float32 with one rounding.

    The product is exact in float64. Rounding its sum to odd there keeps the second rounding, to float32, from being one
    of a number that was rounded already.
    """
    product, added = a.astype(np.float64) * np.float64(b), np.float64(c)
    total = product + added
    part = total - product
    error = (product - (total - part)) + (added - part)
    is_even = total.view(np.int64) & 1 == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & is_even, np.nextafter(total, towards), total).astype(np.float32)
