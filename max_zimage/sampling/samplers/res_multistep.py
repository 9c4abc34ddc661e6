"""RES multistep: an exponential integrator of second order over -ln sigma; one evaluation per step.

    clean = latents + sigma · prediction;  t = -ln sigma;  h = t' - t;  c = (t before - t) / h
    phi1(z) = (e^z - 1) / z;  phi2(z) = (phi1(z) - 1) / z;  b2 = phi2(-h) / c;  b1 = phi1(-h) - b2
    latents' = e^-h · latents + h (b1 · clean + b2 · clean before)

The first step and the one that ends at sigma 0 are Euler's. The slot holds the last clean estimate.

Reference: ComfyUI comfy/k_diffusion/sampling.py, res_multistep without noise (eta 0).
"""

from __future__ import annotations

import math

from max_zimage.sampling.evaluations import Evaluations, evaluations, units
from max_zimage.sampling.schedule import Schedule


def plan(schedule: Schedule) -> Evaluations:
    """One slot: the last clean estimate."""
    levels = [float(level) for level in schedule.sigmas]
    latents, prediction, before = units(1)
    matrices = []
    for step in range(schedule.num_steps):
        begin, end = levels[step : step + 2]
        clean = latents + begin * prediction
        if step == 0 or end == 0:
            moved = latents + (begin - end) * prediction
        else:
            h = math.log(begin / end)
            phi1 = -math.expm1(-h) / h
            second = (phi1 - 1) / math.log(levels[step - 1] / begin)
            moved = end / begin * latents + h * ((phi1 - second) * clean + second * before)
        matrices.append([moved, clean])
    return evaluations(schedule, levels[:-1], range(schedule.num_steps), matrices)
