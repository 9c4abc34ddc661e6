"""DPM-Solver++(2M) SDE, midpoint, eta 1."""

from __future__ import annotations

import math

from tests.sampling.formulas import Array, drawn, model
from tests.sampling.formulas.dpmpp_2m import log_snr

BEGINS = 1 - 1e-4


def dpmpp_2m_sde(levels: list[float], x: Array) -> Array:
    eta, before, h_last = 1.0, x, 1.0
    for step, sigma in enumerate(levels[:-1]):
        following = levels[step + 1]
        denoised = x + sigma * model(x, sigma)
        if following == 0:
            return denoised
        h = log_snr(following) - log_snr(sigma)
        both = h * (1 + eta)
        alpha = 1 - following
        moved = following / sigma * math.exp(-eta * h) * x + alpha * (1 - math.exp(-both)) * denoised
        if step > 0:
            moved = moved + alpha * (1 - math.exp(-both)) / 2 * (h / h_last) * (denoised - before)
        x = moved + drawn(x, step) * following * math.sqrt(1 - math.exp(-2 * eta * h))
        before, h_last = denoised, h
    return x
