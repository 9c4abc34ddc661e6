"""DPM-Solver++(2M) as a stochastic differential equation, midpoint form; one evaluation per step.

With lambda = ln(1 - sigma) - ln sigma, h = lambda' - lambda, and clean = latents + sigma · prediction:

    better = clean + (clean - clean before) · h / (2 h before);  gone = 1 - e^-2h
    latents' = sigma'/sigma e^-h · latents + (1 - sigma') gone · better + sigma' sqrt(gone) · noise

With eta 1. The first step has no difference, the last one is the clean estimate. A first level of 1 is a little below.

Reference: ComfyUI comfy/k_diffusion/sampling.py, sample_dpmpp_2m_sde.
"""

from __future__ import annotations

import math

from max_zimage.sampling.evaluations import Evaluations, evaluations, units
from max_zimage.sampling.log_snr import levels_below_one, rise
from max_zimage.sampling.schedule import Schedule


def plan(schedule: Schedule) -> Evaluations:
    """Two slots: the last clean estimate, and the noise."""
    levels = levels_below_one(schedule)
    latents, prediction, before, noise = units(2)
    matrices = []
    for step in range(schedule.num_steps):
        begin, end = levels[step : step + 2]
        clean = moved = latents + begin * prediction
        if end > 0:
            h = rise(begin, end)
            share = 0.0 if step == 0 else h / (2 * rise(levels[step - 1], begin))
            gone = -math.expm1(-2 * h)
            moved = end / begin * math.exp(-h) * latents + (1 - end) * gone * (clean + share * (clean - before))
            moved = moved + end * math.sqrt(gone) * noise
        matrices.append([moved, clean, 0 * noise])
    takes = [end > 0 for end in levels[1:]]
    return evaluations(schedule, levels[:-1], range(schedule.num_steps), matrices, takes)
