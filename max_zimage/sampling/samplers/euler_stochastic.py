"""Stochastic Euler: the clean estimate, with new noise up to the next level; one evaluation per step.

    latents' = (1 - sigma') · clean + sigma' · noise;  clean = latents + sigma · prediction

Reference: diffusers schedulers/scheduling_flow_match_euler_discrete.py, stochastic_sampling.
"""

from __future__ import annotations

from itertools import pairwise

from max_zimage.sampling.evaluations import Evaluations, evaluations, units
from max_zimage.sampling.schedule import Schedule


def plan(schedule: Schedule) -> Evaluations:
    """One slot: the noise. The last step ends at 0 and takes none."""
    levels = [float(level) for level in schedule.sigmas]
    latents, prediction, noise = units(1)
    matrices = [
        [(1 - end) * (latents + begin * prediction) + end * noise, 0 * noise] for begin, end in pairwise(levels)
    ]
    takes = [end > 0 for end in levels[1:]]
    return evaluations(schedule, levels[:-1], range(schedule.num_steps), matrices, takes)
