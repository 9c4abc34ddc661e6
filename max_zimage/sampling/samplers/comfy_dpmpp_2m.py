"""DPM-Solver++(2M) as ComfyUI has it for flow models: over -ln sigma, not over the signal-to-noise ratio.

    clean = latents + sigma · prediction;  t = -ln sigma;  h = t' - t
    latents' = sigma'/sigma · latents - (e^-h - 1) (clean + (clean - clean before) · h / (2 h before))

The first step and the one that ends at sigma 0 are of first order. The slot holds the last clean estimate.

Reference: ComfyUI comfy/k_diffusion/sampling.py, sample_dpmpp_2m.
"""

from __future__ import annotations

import math

from max_zimage.sampling.evaluations import Evaluations, evaluations
from max_zimage.sampling.schedule import Schedule


def plan(schedule: Schedule) -> Evaluations:
    """Columns are latents, prediction, slot; rows are latents and slot."""
    levels = [float(level) for level in schedule.sigmas]
    matrices = []
    for step in range(schedule.num_steps):
        begin, end = levels[step : step + 2]
        share = 0.0
        if step > 0 and end > 0:
            share = math.log(begin / end) / (2 * math.log(levels[step - 1] / begin))
        own, past = (1 - end / begin) * (1 + share), -(1 - end / begin) * share
        matrices.append([[end / begin + own, own * begin, past], [1.0, begin, 0.0]])
    return evaluations(schedule, levels[:-1], range(schedule.num_steps), matrices)
