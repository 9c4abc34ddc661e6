"""ER-SDE of third order: an extended reverse-time stochastic differential equation; one evaluation per step.

Over l = sigma / (1 - sigma), with xi(y) = y (e^(y^0.3) + 10) for the amount of noise: the first step is of first order,
the second one takes a difference of clean estimates along, all others a second difference too. The integrals of 1 / xi
are sums over 200 points. The last step is the clean estimate. A first level of 1 is a little below.

Reference: ComfyUI comfy/k_diffusion/sampling.py, sample_er_sde.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.evaluations import Evaluations, evaluations, units
from max_zimage.sampling.log_snr import levels_below_one
from max_zimage.sampling.schedule import Schedule

_POINTS = 200


def plan(schedule: Schedule) -> Evaluations:
    """Three slots: the last clean estimate, its difference to the one before over l, and the noise."""
    levels = levels_below_one(schedule)
    ratios = [level / (1 - level) for level in levels]
    latents, prediction, before, slope_before, noise = units(3)
    matrices = []
    for step in range(schedule.num_steps):
        begin, end = levels[step : step + 2]
        clean = moved = latents + begin * prediction
        slope = 0 * before
        if step > 0:
            slope = (clean - before) / (ratios[step] - ratios[step - 1])
        if end > 0:
            high, low = ratios[step : step + 2]
            share = float(_noise_scale(low) / _noise_scale(high))
            first, second = _integrals(high, low)
            moved = share / (1 - begin) * latents + (1 - share) * clean
            if step > 0:
                moved = moved + (low - high + first) * slope
            if step > 1:
                curve = (slope - slope_before) / ((high - ratios[step - 2]) / 2)
                moved = moved + ((low - high) ** 2 / 2 + second) * curve
            moved = (1 - end) * (moved + math.sqrt(max(low**2 - (high * share) ** 2, 0.0)) * noise)
        matrices.append([moved, clean, slope, 0 * noise])
    takes = [end > 0 for end in levels[1:]]
    return evaluations(schedule, levels[:-1], range(schedule.num_steps), matrices, takes)


def _noise_scale(ratio: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
    return np.asarray(ratio * (np.exp(ratio**0.3) + 10), np.float64)


def _integrals(high: float, low: float) -> tuple[float, float]:
    """Of xi(low) / xi(y) and of (y - high) times that, over y from low to high."""
    width = (high - low) / _POINTS
    points = np.asarray(low + width * np.arange(_POINTS), np.float64)
    values = _noise_scale(low) / _noise_scale(points)
    return float(width * values.sum()), float(width * (values * (points - high)).sum())
