"""Ancestral Euler for flow models: a step to below the next level, and noise up to it; one evaluation per step.

    down = sigma'^2 / sigma;  moved = down/sigma · latents + (1 - down/sigma) · clean
    latents' = (1 - sigma')/(1 - down) · moved + noise · sqrt(sigma'^2 - (down (1 - sigma') / (1 - down))^2)

With eta 1. The last step is the clean estimate.

Reference: diffusers schedulers/scheduling_ltx_euler_ancestral_rf.py; ComfyUI comfy/k_diffusion/sampling.py,
sample_euler_ancestral_RF.
"""

from __future__ import annotations

import math
from itertools import pairwise

from max_zimage.sampling.evaluations import Evaluations, evaluations, units
from max_zimage.sampling.schedule import Schedule


def plan(schedule: Schedule) -> Evaluations:
    """One slot: the noise."""
    levels = [float(level) for level in schedule.sigmas]
    latents, prediction, noise = units(1)
    matrices = []
    for begin, end in pairwise(levels):
        clean = latents + begin * prediction
        down = end * end / begin
        scale = (1 - end) / (1 - down)
        moved = scale * (down / begin * latents + (1 - down / begin) * clean)
        matrices.append([moved + math.sqrt(max(end**2 - (down * scale) ** 2, 0.0)) * noise, 0 * noise])
    takes = [end > 0 for end in levels[1:]]
    return evaluations(schedule, levels[:-1], range(schedule.num_steps), matrices, takes)
