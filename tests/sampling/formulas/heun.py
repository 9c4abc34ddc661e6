"""Heun's method; the last step is Euler's, for nothing is evaluated at sigma 0.

Reference: diffusers schedulers/scheduling_flow_match_heun_discrete.py, whose class shifts given sigmas twice.
"""

from __future__ import annotations

from itertools import pairwise

from tests.sampling.formulas import Array, model


def heun(levels: list[float], x: Array) -> Array:
    for sigma, following in pairwise(levels):
        first, delta = model(x, sigma), following - sigma
        there = x - delta * first
        x = there if following == 0 else x - delta * (first + model(there, following)) / 2
    return x
