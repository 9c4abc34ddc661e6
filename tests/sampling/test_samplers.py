"""Samplers as tables: what their matrices do is what their formulas say, and what diffusers' class does."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LTXEulerAncestralRFScheduler,
    UniPCMultistepScheduler,
)

from max_zimage.sampling import samplers
from max_zimage.sampling.evaluations import Evaluations, evaluations
from max_zimage.sampling.names import SAMPLERS
from max_zimage.sampling.schedule import Schedule, ScheduleSpec, schedule
from tests.sampling.formulas import Array, beginning, drawn, formulas, model

SHAPE = (2, 6)
UPDATE = 1e-6
"""Relative difference of an update in float32 from its formula in float64."""


def noise() -> Array:
    return np.random.default_rng(3).standard_normal(SHAPE)


def by_matrices(plan: Evaluations, x: Array) -> Array:
    """In float32, as the graph does it."""
    state = [x.astype(np.float32), *(np.zeros(x.shape, np.float32) for _ in range(plan.slots))]
    for index, (sigma, matrix) in enumerate(zip(plan.sigmas, plan.matrices.astype(np.float32), strict=True)):
        latents, *slots = state
        if plan.noisy[index]:
            step = int(plan.steps[index])
            slots[-1] = drawn(x, step, index - plan.of_step(step).start).astype(np.float32)
        seen = np.stack([latents, model(latents, float(sigma)), *slots])
        state = list(np.einsum("rc,c...->r...", matrix, seen))
    return state[0]


FORMULAS = formulas()


def test_every_file_is_a_sampler_and_has_a_formula() -> None:
    assert set(SAMPLERS) == set(FORMULAS), "tests/sampling/formulas/ wants a file for every sampler"
    with pytest.raises(ValueError, match=rf"must be one of {', '.join(SAMPLERS)}, got 'none'"):
        samplers.plan("none", schedule(ScheduleSpec(shift=3.0, num_train_timesteps=1000), steps=2))


@pytest.mark.parametrize("left_out", [0, 1])
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("steps", [2, 3, 8, 9, 20, 50])
@pytest.mark.parametrize("name", FORMULAS)
def test_matrices_are_formulas(name: str, steps: int, shift: float, left_out: int) -> None:
    """From pure noise, and from the level that image-to-image begins at."""
    plan = schedule(ScheduleSpec(shift=shift, num_train_timesteps=1000), steps=steps).after(left_out)
    expected = FORMULAS[name](beginning(name, [float(level) for level in plan.sigmas], shift), noise())
    actual = by_matrices(samplers.plan(name, plan), noise())
    assert np.isfinite(actual).all()
    # Errors of single updates add up over the steps.
    assert np.linalg.norm(actual - expected) <= UPDATE * plan.num_steps * np.linalg.norm(expected)


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_dpmpp_2m_is_that_of_diffusers_on_its_own_sigmas(steps: int) -> None:
    theirs = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, final_sigmas_type="zero"
    )
    theirs.set_timesteps(steps)
    levels = theirs.sigmas.numpy().astype(np.float32)
    sample = torch.from_numpy(noise().astype(np.float32))
    for sigma, time in zip(levels[:-1], theirs.timesteps, strict=True):
        velocity = -torch.from_numpy(model(sample.numpy(), float(sigma)))  # theirs points the other way
        sample = theirs.step(velocity, time, sample).prev_sample
    plan = Schedule(sigmas=levels, timesteps=1 - levels[:-1], deltas=np.diff(levels))
    actual = by_matrices(samplers.plan("dpmpp_2m", plan), noise())
    assert np.linalg.norm(actual - sample.numpy()) <= 2 * UPDATE * steps * np.linalg.norm(actual)


def test_unipc_is_that_of_diffusers_on_its_own_timesteps() -> None:
    """Which are truncated to whole numbers: the class is given what the model says at our levels."""
    for steps in (1, 2, 3, 8, 20):
        theirs = UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, final_sigmas_type="zero"
        )
        even = np.linspace(1, 1 / steps, steps).astype(np.float32)
        theirs.set_timesteps(sigmas=even)
        levels = theirs.sigmas.numpy().astype(np.float32)
        sample = torch.from_numpy(noise().astype(np.float32))[None, None]
        for sigma, time in zip(levels[:-1], theirs.timesteps, strict=True):
            velocity = -torch.from_numpy(model(sample[0, 0].numpy(), float(sigma)))[None, None]
            sample = theirs.step(velocity, time, sample).prev_sample
        plan = Schedule(sigmas=levels, timesteps=1 - levels[:-1], deltas=np.diff(levels))
        actual = by_matrices(samplers.plan("unipc", plan), noise())
        assert np.linalg.norm(actual - sample[0, 0].numpy()) <= 2 * UPDATE * steps * np.linalg.norm(actual)


class Draws:
    """What stands in for torch's random numbers while a class of diffusers draws: the steps' own, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.step = 0
        monkeypatch.setattr(module, "randn_tensor", self)
        monkeypatch.setattr(torch, "randn_like", self)

    def __call__(self, like: Any, **_: object) -> torch.Tensor:
        shape = SHAPE if isinstance(like, tuple | torch.Size) else tuple(like.shape)
        found = drawn(np.zeros(SHAPE), self.step).astype(np.float32)
        self.step += 1
        return torch.from_numpy(found).reshape(shape)


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("name", ["euler_ancestral", "lcm", "euler_stochastic"])
def test_samplers_that_draw_noise_are_those_of_diffusers(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = schedule(ScheduleSpec(shift=3.0, num_train_timesteps=1000), steps=steps)
    levels = [float(level) for level in plan.sigmas]
    given: dict[str, Any] = {"sigmas": levels[:-1]}
    theirs: Any
    if name == "euler_ancestral":
        theirs, given = LTXEulerAncestralRFScheduler(), {"sigmas": levels}
    elif name == "lcm":
        theirs = FlowMatchLCMScheduler(shift=1.0)
    else:
        theirs = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=True)
    Draws(monkeypatch, sys.modules[type(theirs).__module__])
    theirs.set_timesteps(**given)
    np.testing.assert_allclose(theirs.sigmas.numpy(), plan.sigmas, rtol=1e-6)
    sample = torch.from_numpy(noise().astype(np.float32))
    for sigma, time in zip(plan.sigmas[:-1], theirs.timesteps[:steps], strict=True):
        velocity = -torch.from_numpy(model(sample.numpy(), float(sigma)))
        sample = theirs.step(velocity, time, sample).prev_sample
    actual = by_matrices(samplers.plan(name, plan), noise())
    assert np.linalg.norm(actual - sample.numpy()) <= 2 * UPDATE * steps * np.linalg.norm(actual)


def test_streams_are_of_the_step_and_not_of_what_is_left() -> None:
    """So that image-to-image, or the second half of a run, draws what the whole run draws in these steps."""
    whole = schedule(ScheduleSpec(shift=3.0, num_train_timesteps=1000), steps=5)
    found, rest = (samplers.plan("dpmpp_sde", plan) for plan in (whole, whole.after(3)))
    assert found.streams.tolist() == [2, 3, 18, 19, 34, 35, 50, 51, 66]
    assert rest.streams.tolist() == found.streams.tolist()[-3:]
    assert found.noisy.tolist() == [True] * 8 + [False]


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "res_multistep", "comfy_dpmpp_2m", "heun"])
def test_the_error_falls_with_the_square_of_the_steps(name: str) -> None:
    """Of second order: half the step, a quarter of the error; between two levels, where nothing is cut off."""

    def end(steps: int, sampler: str = name) -> Array:
        levels = np.append(np.linspace(0.9, 0.3, steps + 1), 0).astype(np.float64)
        plan = Schedule(sigmas=levels, timesteps=1 - levels[:-1], deltas=np.diff(levels))  # type: ignore[arg-type]
        state = [noise(), *(np.zeros(SHAPE) for _ in range(samplers.plan(sampler, plan).slots))]
        found = samplers.plan(sampler, plan)
        for index in range(found.count):
            if found.steps[index] == steps:  # the last step, to 0, is of first order
                break
            seen = np.stack([state[0], model(state[0], float(found.sigmas[index])), *state[1:]])
            state = list(np.einsum("rc,c...->r...", found.matrices[index], seen))
        return state[0]

    exact = end(1024, "heun")
    errors = [float(np.linalg.norm(end(steps) - exact)) for steps in (16, 32, 64)]
    orders = [math.log2(before / after) for before, after in pairwise(errors)]
    assert all(order > 1.6 for order in orders), orders


def test_euler_is_one_subtraction_to_the_bit() -> None:
    plan = schedule(ScheduleSpec(shift=3.0, num_train_timesteps=1000), steps=9)
    found = samplers.plan("euler", plan)
    assert (found.slots, found.count) == (0, 9)
    np.testing.assert_array_equal(found.updates, np.stack([plan.deltas, np.zeros(9, np.float32)], axis=1))
    np.testing.assert_array_equal(found.timesteps, plan.timesteps)


def test_how_often_the_model_is_asked() -> None:
    plan = schedule(ScheduleSpec(shift=3.0, num_train_timesteps=1000), steps=5)
    assert [samplers.plan(name, plan).count for name in ("dpmpp_2m", "euler", "heun")] == [5, 5, 9]
    found = samplers.plan("heun", plan)
    assert [list(found.of_step(step)) for step in range(5)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert found.timesteps[1] == plan.timesteps[1]  # the level at a step's end is the next step's own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [0, 0]}, "evaluate each of 2 steps in order"),
        ({"steps": [1, 0]}, "evaluate each of 2 steps in order"),
        ({"matrices": [[[1.0, 0.0, 0.0]]] * 2}, r"matrices \[2, 1, 3\]"),
        ({"matrices": [[[1.0, math.inf]]] * 2}, "must be finite in float32, got inf"),
        ({"matrices": [[[1.0, 1e39]]] * 2}, r"must be finite in float32, got 1e\+39"),
    ],
)
def test_tables_that_fit_no_schedule_are_refused(change: dict[str, object], message: str) -> None:
    plan = schedule(ScheduleSpec(shift=3.0, num_train_timesteps=1000), steps=2)
    given: dict[str, object] = {"sigmas": [1.0, 0.75], "steps": [0, 1], "matrices": [[[1.0, 0.5]]] * 2}
    with pytest.raises(ValueError, match=message):
        evaluations(plan, **(given | change))  # type: ignore[arg-type]
