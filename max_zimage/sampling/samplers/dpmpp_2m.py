"""DPM-Solver++(2M): a multistep method over the logarithm of the signal-to-noise ratio; one evaluation per step.

    clean = latents + sigma · prediction;  lambda = ln(1 - sigma) - ln sigma;  h = lambda' - lambda
    latents' = sigma'/sigma · latents - (1 - sigma') (e^-h - 1) (clean + (clean - clean before) · h / (2 h before))

On the request's own sigmas. At sigma 1 lambda is minus infinity, so e^-h is 0 and the second step's difference has no
weight; the first step and the last one, which ends at sigma 0, are of first order. The slot holds the last clean
estimate.

Reference: diffusers schedulers/scheduling_dpmsolver_multistep.py with use_flow_sigmas, algorithm dpmsolver++, midpoint.
"""

from __future__ import annotations

import math

from max_zimage.sampling.evaluations import Evaluations, evaluations
from max_zimage.sampling.log_snr import rise
from max_zimage.sampling.schedule import Schedule


def plan(schedule: Schedule) -> Evaluations:
    """Columns are latents, prediction, slot; rows are latents and slot."""
    levels = [float(level) for level in schedule.sigmas]
    matrices = []
    for step in range(schedule.num_steps):
        begin, end = levels[step : step + 2]
        of_clean = -(1 - end) * math.expm1(-rise(begin, end))
        share = 0.0
        if step > 0 and end > 0:
            before = rise(levels[step - 1], begin)
            share = 0.0 if math.isinf(before) else rise(begin, end) / (2 * before)
        # The clean estimate is latents + begin · prediction; the slot holds the one before.
        own, past = of_clean * (1 + share), -of_clean * share
        matrices.append([[end / begin + own, own * begin, past], [1.0, begin, 0.0]])
    return evaluations(schedule, levels[:-1], range(schedule.num_steps), matrices)
