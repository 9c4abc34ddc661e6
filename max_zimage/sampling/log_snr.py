"""lambda = ln((1 - sigma) / sigma), the logarithm of the signal-to-noise ratio: what many samplers are written over."""

from __future__ import annotations

import math

from max_zimage.sampling.schedule import Schedule

_BEGINS = 1 - 1e-4


def log_snr(sigma: float) -> float:
    """Lambda of a noise level; minus infinity at 1, infinity at 0."""
    if sigma >= 1 or sigma <= 0:
        return -math.inf if sigma >= 1 else math.inf
    return math.log1p(-sigma) - math.log(sigma)


def rise(begin: float, end: float) -> float:
    """How far lambda rises from one noise level to a lower one; infinite from 1 and to 0."""
    if begin >= 1 or end <= 0:
        return math.inf
    return log_snr(end) - log_snr(begin)


def levels_below_one(schedule: Schedule) -> list[float]:
    """A schedule's levels for samplers that need a finite lambda: a first one of 1 is the shifted 0.9999.

    Reference: ComfyUI comfy/k_diffusion/sampling.py, offset_first_sigma_for_snr.
    """
    levels = [float(level) for level in schedule.sigmas]
    if levels[0] >= 1:
        levels[0] = max(schedule.shift * _BEGINS / (1 + (schedule.shift - 1) * _BEGINS), (1 + levels[1]) / 2)
    return levels
