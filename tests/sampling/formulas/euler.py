"""Euler's method."""

from __future__ import annotations

from itertools import pairwise

from tests.sampling.formulas import Array, model


def euler(levels: list[float], x: Array) -> Array:
    for sigma, following in pairwise(levels):
        x = x - (following - sigma) * model(x, sigma)
    return x
