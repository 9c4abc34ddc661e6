"""Stochastic Euler: the clean estimate with new noise."""

from __future__ import annotations

from tests.sampling.formulas import Array, drawn, model


def euler_stochastic(levels: list[float], x: Array) -> Array:
    for step, sigma in enumerate(levels[:-1]):
        clean = x + sigma * model(x, sigma)
        x = (1 - levels[step + 1]) * clean + levels[step + 1] * drawn(x, step)
    return x
