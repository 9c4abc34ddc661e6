"""LCM: for flow models, noise is put on the clean estimate anew."""

from __future__ import annotations

from tests.sampling.formulas import Array, drawn, model


def lcm(levels: list[float], x: Array) -> Array:
    for step, sigma in enumerate(levels[:-1]):
        following, denoised = levels[step + 1], x + sigma * model(x, sigma)
        x = following * drawn(x, step) + (1 - following) * denoised
    return x
