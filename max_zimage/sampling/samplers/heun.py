"""Heun's method: Euler to the end of the step, the model once more there, and the mean of both predictions.

The last step ends at sigma 0, where the model says nothing, and is Euler's: N steps are 2 N - 1 evaluations. One slot
holds the latents of the step's beginning, half of the first prediction taken along already.

Reference: diffusers schedulers/scheduling_flow_match_heun_discrete.py, step.
"""

from __future__ import annotations

from max_zimage.sampling.evaluations import Evaluations, evaluations
from max_zimage.sampling.schedule import Schedule

_EMPTY = [0.0, 0.0, 0.0]


def plan(schedule: Schedule) -> Evaluations:
    """Columns are latents, prediction, slot; rows are latents and slot."""
    sigmas, steps, matrices = [], [], []
    for step in range(schedule.num_steps):
        begin, end = (float(level) for level in schedule.sigmas[step : step + 2])
        fall = begin - end
        sigmas.append(begin)
        steps.append(step)
        if end == 0:
            matrices.append([[1.0, fall, 0.0], _EMPTY])
            continue
        matrices.append([[1.0, fall, 0.0], [1.0, fall / 2, 0.0]])
        sigmas.append(end)
        steps.append(step)
        matrices.append([[0.0, fall / 2, 1.0], _EMPTY])
    return evaluations(schedule, sigmas, steps, matrices)
