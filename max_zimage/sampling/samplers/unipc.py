"""UniPC of order 2, B(h) = e^h - 1: predicts a step, and corrects it with the evaluation that it leads to.

One evaluation per step. With lambda = ln(1 - sigma) - ln sigma and clean = latents + sigma · prediction, a step is an
exponential integrator of second order over the clean estimates; on arrival the step is taken again from its beginning,
the new estimate included, and the next one goes on from there. The first step predicts, and the last one too, by first
order. A first level of 1 is 1 - 1e-6.

Slots: the latents of the last step's beginning, corrected; the last clean estimate; the one before.

Reference: diffusers schedulers/scheduling_unipc_multistep.py with use_flow_sigmas and flow_prediction (bh2), whose
timesteps are truncated to whole numbers; these are not.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.evaluations import Evaluations, evaluations, units
from max_zimage.sampling.log_snr import log_snr, rise
from max_zimage.sampling.schedule import Schedule

Rows = npt.NDArray[np.float64]

_FIRST = 1 - 1e-6


def plan(schedule: Schedule) -> Evaluations:
    """Three slots, see above."""
    levels = [float(level) for level in schedule.sigmas]
    levels[0] = min(levels[0], _FIRST)
    steps = schedule.num_steps
    latents, prediction, begun, last, older = units(3)
    matrices = []
    for step in range(steps):
        sigma = levels[step]
        clean = latents + sigma * prediction
        corrected = latents
        if step > 0:
            corrected = _corrected(levels[: step + 1], begun, clean, last, older)
        is_second = 0 < step < steps - 1
        moved = _predicted(levels[max(step - 1, 0) : step + 2], corrected, clean, last, is_second=is_second)
        matrices.append([moved, corrected, clean, last])
    return evaluations(schedule, levels[:-1], range(steps), matrices)


def _predicted(levels: list[float], begin: Rows, clean: Rows, last: Rows, *, is_second: bool) -> Rows:
    """From the last but one of the levels to the last."""
    sigma, end = levels[-2:]
    h = rise(sigma, end)
    grown = math.expm1(-h)
    moved = end / sigma * begin - (1 - end) * grown * clean
    if is_second:
        ratio = (log_snr(levels[0]) - log_snr(sigma)) / h
        moved = moved - (1 - end) * grown * (last - clean) / (2 * ratio)
    return moved


def _corrected(levels: list[float], begun: Rows, clean: Rows, last: Rows, older: Rows) -> Rows:
    """The step that ended at the last of the levels, again; of second order where an estimate lies before it."""
    begin, end = levels[-2:]
    h = -rise(begin, end)
    grown = math.expm1(h)
    moved = end / begin * begun - (1 - end) * grown * last
    if len(levels) == 2:
        return np.asarray(moved - (1 - end) * grown * (clean - last) / 2, np.float64)
    ratio = (log_snr(levels[-3]) - log_snr(begin)) / -h
    phi = grown / h - 1
    weights = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [phi / grown, 2 * (phi / h - 0.5) / grown])
    change = weights[0] * (older - last) / ratio + weights[1] * (clean - last)
    return np.asarray(moved - (1 - end) * grown * change, np.float64)
