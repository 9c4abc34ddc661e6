"""Euler: a straight line along the prediction, the reference's own sampler; one evaluation per step.

    latents' = latents + (sigma - sigma') · prediction

Reference: diffusers schedulers/scheduling_flow_match_euler_discrete.py, step.
"""

from __future__ import annotations

from max_zimage.sampling.evaluations import Evaluations, evaluations
from max_zimage.sampling.schedule import Schedule


def plan(schedule: Schedule) -> Evaluations:
    """One row per step: what is taken away is delta times the prediction, as the schedule has it in float32."""
    matrices = [[[1.0, -float(delta)]] for delta in schedule.deltas]
    return evaluations(schedule, schedule.sigmas[:-1].tolist(), range(schedule.num_steps), matrices)
