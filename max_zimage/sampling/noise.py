"""The noise a seed stands for: float32 normal values, the same bits on every machine.

The generator, exactly:

1. Image k of a request has the seed `(seed + k) mod 2**63`: every picture can be made again alone, and does not depend
   on how many were asked for together.
2. Words: the 64-bit output of Philox 4x64 with 10 rounds, key (image seed, 0), as `numpy.random.Philox` streams it.
   numpy promises that stream; the values of `Generator.standard_normal` may change with its version.
3. Pairs of words (a, b) become two normal values (Box-Muller), in float64: with u = (floor(a / 2**11) + 1) / 2**53 in
   (0, 1] and v = floor(b / 2**11) / 2**53 in [0, 1), values 2i and 2i + 1 are sqrt(-2 ln u) * cos(2 pi v) and
   sqrt(-2 ln u) * sin(2 pi v), rounded to float32. They fill [channels, height / 8, width / 8] in C order.
4. ln, cos and sin are the series below rather than the C library's, whose last bit differs between machines. They use
   only addition, multiplication, division and square root, which IEEE 754 defines to the last bit.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.ranges import MAX_SEED

_Float64 = npt.NDArray[np.float64]

_LN_2 = 0.6931471805599453
_COS_TERMS = [(-1.0) ** k / math.factorial(2 * k) for k in range(10)]
_SIN_TERMS = [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(10)]
_ATANH_TERMS = [1.0 / (2 * k + 1) for k in range(12)]


def fresh_seed() -> int:
    """Return a seed for a request that names none; short enough to be typed and to survive JSON readers."""
    return secrets.randbelow(2**32)


def image_seed(seed: int, index: int) -> int:
    """Return the seed of image `index` of a request, the one that makes this picture again alone."""
    return (seed + index) % (MAX_SEED + 1)


def standard_normal(seed: int, shape: tuple[int, ...], stream: int = 0) -> npt.NDArray[np.float32]:
    """Draw independent normal values of mean 0 and variance 1 as the module describes.

    Args:
        seed: 0 to 2**63 - 1.
        shape: Shape of the result.
        stream: The second word of Philox' key, below 2**64: 0 for starting noise, others for other noise of the same
            picture.

    Returns:
        float32 of that shape.

    Raises:
        ValueError: If the seed is out of range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"the seed must be a whole number from 0 to {MAX_SEED}, got {seed}")
    count = math.prod(shape)
    pairs = -(-count // 2)
    generator = np.random.Philox(key=np.asarray([seed, stream], np.uint64))
    words = np.asarray(generator.random_raw(2 * pairs), np.uint64).reshape(pairs, 2)
    units = (words >> np.uint64(11)).astype(np.float64)
    radius = np.sqrt(-2.0 * _log((units[:, 0] + 1.0) * 2.0**-53))
    cosine, sine = _cos_sin_of_turn(units[:, 1] * 2.0**-53)
    values = np.stack([radius * cosine, radius * sine], axis=-1).reshape(-1)
    return values[:count].astype(np.float32).reshape(shape)


def uniform(seed: int, shape: tuple[int, ...], stream: int) -> _Float64:
    """Draw independent numbers in [0, 1), from as many words of a stream as there are numbers.

    Args:
        seed: 0 to 2**63 - 1.
        shape: Shape of the result.
        stream: As in `standard_normal`.
    """
    words = np.random.Philox(key=np.asarray([seed, stream], np.uint64)).random_raw(math.prod(shape))
    return ((np.asarray(words, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def _log(value: _Float64) -> _Float64:
    """Natural logarithm of values in (0, 1], from ln m = 2 atanh((m - 1) / (m + 1)) with m near 1."""
    mantissa, exponent = np.frexp(value)
    small = mantissa < math.sqrt(0.5)
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = exponent - small
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * _LN_2 + 2.0 * ratio * _polynomial(ratio * ratio, _ATANH_TERMS)


def _cos_sin_of_turn(turn: _Float64) -> tuple[_Float64, _Float64]:
    """Cosine and sine of `2 pi turn` for turns in [0, 1): an exact reduction to an eighth of a turn, then series."""
    quarter = np.floor(turn * 4.0 + 0.5)
    angle = (turn - quarter * 0.25) * (2.0 * math.pi)
    square = angle * angle
    cosine, sine = _polynomial(square, _COS_TERMS), angle * _polynomial(square, _SIN_TERMS)
    odd, negative_cos, negative_sin = quarter % 2 == 1, np.isin(quarter, (1, 2)), np.isin(quarter, (2, 3))
    return (
        np.where(odd, sine, cosine) * np.where(negative_cos, -1.0, 1.0),
        np.where(odd, cosine, sine) * np.where(negative_sin, -1.0, 1.0),
    )


def _polynomial(value: _Float64, terms: list[float]) -> _Float64:
    # Horner's rule with separate multiplications and additions: numpy does not fuse them.
    total = np.full_like(value, terms[-1])
    for term in reversed(terms[:-1]):
        total = total * value + term
    return total
