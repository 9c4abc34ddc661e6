"""Every sampler with every sigma shape: levels fall, steps are all there, and an exact model is followed to its end."""

from __future__ import annotations

import numpy as np
import pytest

from max_zimage.sampling import samplers
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import within
from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES
from max_zimage.sampling.noise import standard_normal
from max_zimage.sampling.schedule import Schedule, ScheduleSpec, first_step, schedule

SPEC = ScheduleSpec(shift=3.0, num_train_timesteps=1000)
CLEAN = standard_normal(5, (4, 8, 8))
LENGTHS = ((1, 1.0), (2, 1.0), (9, 0.5), (8, 1.0), (40, 1.0), (100, 0.1))
"""Steps and strength; the last is where levels that other programs round to whole timesteps meet."""
LACKING = ("ddim_uniform", "beta57", "comfy_beta")
"""Shapes that have not as many levels as any number of steps."""


def levels(shape: str, steps: int, strength: float) -> Schedule | None:
    """None where the shape does not have so many levels."""
    try:
        whole = schedule(SPEC, steps=steps, shape=shape)
    except ValueError as error:
        assert shape in LACKING, error
        return None
    return whole.after(first_step(steps, strength))


def walked(plan: Evaluations, begin: np.ndarray) -> np.ndarray:
    """In float32: what the sampler makes of a model that always sees the clean latents behind the noise."""
    state = [begin.astype(np.float32), *(np.zeros(begin.shape, np.float32) for _ in range(plan.slots))]
    for index, (sigma, matrix) in enumerate(zip(plan.sigmas, plan.matrices.astype(np.float32), strict=True)):
        latents, *slots = state
        if plan.noisy[index]:
            slots[-1] = standard_normal(7, begin.shape, int(plan.streams[index]))
        prediction = (CLEAN - latents) / np.float32(sigma)
        state = list(np.einsum("rc,c...->r...", matrix, np.stack([latents, prediction, *slots])))
    return np.asarray(state[0])


@pytest.mark.parametrize("shape", SIGMA_SHAPES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_exact_model_ends_at_its_picture(sampler: str, shape: str) -> None:
    """What is left of the noise, or of a step that is missing or taken twice, would be seen in the end."""
    tried = 0
    for steps, strength in LENGTHS:
        fallen = levels(shape, steps, strength)
        if fallen is None:
            continue
        assert fallen.num_steps == steps - first_step(steps, strength)
        plan = samplers.plan(sampler, fallen)
        assert sorted(set(plan.steps.tolist())) == list(range(fallen.num_steps))
        level = fallen.sigmas[0]
        begin = level * standard_normal(6, CLEAN.shape) + (1 - level) * CLEAN
        found = walked(plan, begin)
        assert np.linalg.norm(found - CLEAN) <= 1e-5 * np.linalg.norm(CLEAN), (steps, strength)
        tried += 1
    assert tried >= 3


@pytest.mark.parametrize("steps", [*range(1, 31), 50, 100])
def test_a_window_begins_with_the_step_that_its_share_names(steps: int) -> None:
    """A bound that is a step's share, as a person writes it: that step is the first inside, or the first behind."""
    plan = samplers.plan("euler", schedule(SPEC, steps=steps))
    for step in range(steps):
        for digits in (6, 12, 17):
            share = float(f"{step / steps:.{digits}g}")
            if share != step / steps:
                continue
            assert within(plan, share, 1.0).sum() == steps - step
            assert within(plan, 0.0, share).sum() == step
