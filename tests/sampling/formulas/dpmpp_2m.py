"""DPM-Solver++(2M) over the logarithm of the signal-to-noise ratio, with its limits at 1 and 0."""

from __future__ import annotations

import math
from itertools import pairwise

from tests.sampling.formulas import Array, model


def dpmpp_2m(levels: list[float], x: Array) -> Array:
    before, gap_before = x, math.inf
    for step, (sigma, following) in enumerate(pairwise(levels)):
        clean = x + sigma * model(x, sigma)
        gap = math.inf if sigma == 1 or following == 0 else log_snr(following) - log_snr(sigma)
        better = clean
        if step > 0 and following > 0 and gap_before < math.inf:
            better = clean + (clean - before) * gap / gap_before / 2
        x = following / sigma * x - (1 - following) * (math.exp(-gap) - 1) * better
        before, gap_before = clean, gap
    return x


def log_snr(sigma: float) -> float:
    return math.log((1 - sigma) / sigma)
