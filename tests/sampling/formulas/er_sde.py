"""ER-SDE of three stages, with 200 points for its integrals."""

from __future__ import annotations

import math

import numpy as np

from tests.sampling.formulas import Array, drawn, model

BEGINS = 1 - 1e-4


def er_sde(levels: list[float], x: Array) -> Array:
    ratios = [level / (1 - level) for level in levels]
    before, slope_before = x, x
    for step, sigma in enumerate(levels[:-1]):
        following = levels[step + 1]
        denoised = x + sigma * model(x, sigma)
        if following == 0:
            return denoised
        here, there = ratios[step], ratios[step + 1]
        alpha, r = 1 - following, scale(there) / scale(here)
        moved = alpha / (1 - sigma) * r * x + alpha * (1 - r) * denoised
        if step > 0:
            change = there - here
            points = there + np.arange(200) * -change / 200
            weights = 1 / np.array([scale(point) for point in points])
            slope = (denoised - before) / (here - ratios[step - 1])
            moved = moved + alpha * (change + weights.sum() * -change / 200 * scale(there)) * slope
            if step > 1:
                curve = (slope - slope_before) / ((here - ratios[step - 2]) / 2)
                total = (weights * (points - here)).sum() * -change / 200
                moved = moved + alpha * (change**2 / 2 + total * scale(there)) * curve
            slope_before = slope
        x = moved + alpha * drawn(x, step) * math.sqrt(max(there**2 - here**2 * r**2, 0))
        before = denoised
    return x


def scale(ratio: float) -> float:
    return ratio * (math.exp(ratio**0.3) + 10)
