"""Ancestral Euler for flow models, eta 1."""

from __future__ import annotations

import math

from tests.sampling.formulas import Array, drawn, model


def euler_ancestral(levels: list[float], x: Array) -> Array:
    for step, sigma in enumerate(levels[:-1]):
        following = levels[step + 1]
        denoised = x + sigma * model(x, sigma)
        if following == 0:
            return denoised
        down = following * (1 + (following / sigma - 1) * 1.0)
        renoise = math.sqrt(following**2 - down**2 * (1 - following) ** 2 / (1 - down) ** 2)
        x = down / sigma * x + (1 - down / sigma) * denoised
        x = (1 - following) / (1 - down) * x + drawn(x, step) * renoise
    return x
