"""DPM-Solver++(2M) over -ln sigma."""

from __future__ import annotations

import math

from tests.sampling.formulas import Array, model


def comfy_dpmpp_2m(levels: list[float], x: Array) -> Array:
    before = x
    for step, sigma in enumerate(levels[:-1]):
        following = levels[step + 1]
        better = clean = x + sigma * model(x, sigma)
        if following == 0:
            return clean
        h = math.log(sigma) - math.log(following)
        if step > 0:
            r = (math.log(levels[step - 1]) - math.log(sigma)) / h
            better = (1 + 1 / (2 * r)) * clean - before / (2 * r)
        x = following / sigma * x - (math.exp(-h) - 1) * better
        before = clean
    return x
