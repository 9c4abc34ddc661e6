"""DPM-Solver++ as a stochastic differential equation, by the middle of each step; two evaluations per step.

Over lambda = ln(1 - sigma) - ln sigma: first to the middle of the step, then from its beginning over the whole of it
with the clean estimate of the middle. Each of both ways goes to below where it leads, and noise leads up to it, as in
ancestral sampling with eta 1. The last step is the clean estimate. A first level of 1 is a little below.

Reference: ComfyUI comfy/k_diffusion/sampling.py, sample_dpmpp_sde with r = 1/2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.evaluations import Evaluations, evaluations, units
from max_zimage.sampling.log_snr import levels_below_one, log_snr
from max_zimage.sampling.schedule import Schedule

Rows = npt.NDArray[np.float64]


def plan(schedule: Schedule) -> Evaluations:
    """Two slots: the latents of the step's beginning, and the noise."""
    levels = levels_below_one(schedule)
    latents, prediction, begun, noise = units(2)
    sigmas, steps, matrices, takes = [], [], [], []
    for step in range(schedule.num_steps):
        begin, end = levels[step : step + 2]
        clean = latents + begin * prediction
        sigmas.append(begin)
        steps.append(step)
        takes.append(end > 0)
        if end == 0:
            matrices.append([clean, 0 * begun, 0 * noise])
            continue
        middle = 1 / (1 + math.exp((log_snr(begin) + log_snr(end)) / 2))
        matrices.append([_moved(begin, middle, latents, clean, noise), latents, 0 * noise])
        sigmas.append(middle)
        steps.append(step)
        takes.append(True)
        matrices.append([_moved(begin, end, begun, latents + middle * prediction, noise), 0 * begun, 0 * noise])
    return evaluations(schedule, sigmas, steps, matrices, takes)


def _moved(begin: float, end: float, latents: Rows, clean: Rows, noise: Rows) -> Rows:
    """From one level to a lower one, by way of one below."""
    high, low = begin / (1 - begin), end / (1 - end)
    up = min(low, low * math.sqrt(max(high**2 - low**2, 0.0)) / high)
    down = math.sqrt(low**2 - up**2)
    share = down / high  # e^-h of the way down
    return (1 - end) * (share / (1 - begin) * latents + (1 - share) * clean + up * noise)
