"""Quantiles of the beta distribution, for two sigma shapes; scipy is no dependency of the engine.

Reference: Numerical Recipes, section 6.4 (the continued fraction of the incomplete beta function, by Lentz' method).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_TERMS, _TINY, _HALVINGS = 300, 1e-300, 200


def quantiles(shares: npt.NDArray[np.float64], alpha: float, beta: float) -> npt.NDArray[np.float64]:
    """Where the distribution function of Beta(alpha, beta) reaches the given shares.

    Args:
        shares: In [0, 1].
        alpha: Above 0.
        beta: Above 0.

    Returns:
        Float64 in [0, 1], like `shares`.
    """
    return np.asarray([_quantile(float(share), alpha, beta) for share in shares])


@lru_cache(maxsize=4096)
def _quantile(share: float, alpha: float, beta: float) -> float:
    if share in (0.0, 1.0):
        return share
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if _distribution(middle, alpha, beta) < share else (low, middle)
    return (low + high) / 2


def _distribution(x: float, alpha: float, beta: float) -> float:
    """The regularized incomplete beta function; by the side on which its fraction converges soon."""
    if x > (alpha + 1) / (alpha + beta + 2):
        return 1 - _distribution(1 - x, beta, alpha)
    scale = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    front = math.exp(scale + alpha * math.log(x) + beta * math.log1p(-x))
    return front * _fraction(x, alpha, beta) / alpha


def _fraction(x: float, alpha: float, beta: float) -> float:
    numerator, denominator = 1.0, 1 / _away_from_0(1 - (alpha + beta) * x / (alpha + 1))
    value = denominator
    for term in range(1, _TERMS):
        even = term * (beta - term) * x / ((alpha + 2 * term - 1) * (alpha + 2 * term))
        odd = -(alpha + term) * (alpha + beta + term) * x / ((alpha + 2 * term) * (alpha + 2 * term + 1))
        for coefficient in (even, odd):
            denominator = 1 / _away_from_0(1 + coefficient * denominator)
            numerator = _away_from_0(1 + coefficient / numerator)
            value *= denominator * numerator
        if denominator * numerator == 1.0:
            break
    return value


def _away_from_0(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
