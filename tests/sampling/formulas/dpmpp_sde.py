"""DPM-Solver++ SDE with r = 1/2 and eta 1, each half by an ancestral split of sigma / (1 - sigma)."""

from __future__ import annotations

import math

from tests.sampling.formulas import Array, drawn, model
from tests.sampling.formulas.dpmpp_2m import log_snr

BEGINS = 1 - 1e-4


def dpmpp_sde(levels: list[float], x: Array) -> Array:
    for step, sigma in enumerate(levels[:-1]):
        following = levels[step + 1]
        denoised = x + sigma * model(x, sigma)
        if following == 0:
            return denoised
        lam, lam_next = log_snr(sigma), log_snr(following)
        middle = lam + (lam_next - lam) / 2
        sigma_middle = 1 / (1 + math.exp(middle))
        there = one_way(x, denoised, sigma, sigma_middle) + (1 - sigma_middle) * up(lam, middle) * drawn(x, step, 0)
        denoised = there + sigma_middle * model(there, sigma_middle)
        x = one_way(x, denoised, sigma, following) + (1 - following) * up(lam, lam_next) * drawn(x, step, 1)
    return x


def up(begin: float, end: float) -> float:
    high, low = math.exp(-begin), math.exp(-end)
    return min(low, math.sqrt(low**2 * (high**2 - low**2) / high**2))


def one_way(x: Array, denoised: Array, begin: float, end: float) -> Array:
    lam, lam_end = log_snr(begin), log_snr(end)
    down = math.sqrt(math.exp(-2 * lam_end) - up(lam, lam_end) ** 2)
    h = -math.log(down) - lam
    return (1 - end) / (1 - begin) * math.exp(-h) * x + (1 - end) * (1 - math.exp(-h)) * denoised
