"""The schedule against diffusers' scheduler, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas

from max_zimage.sampling import samplers
from max_zimage.sampling.dynamic_shift import DynamicShift
from max_zimage.sampling.guidance import cfg
from max_zimage.sampling.schedule import (
    Schedule,
    ScheduleSpec,
    default_sigmas,
    schedule,
    shifted,
)

SPEC = ScheduleSpec(shift=3.0, num_train_timesteps=1000)


def reference(shift: float, sigmas: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sigmas, model timesteps and step lengths as ZImagePipeline and its scheduler compute them."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(sigmas=sigmas)
    timesteps = (1000 - scheduler.timesteps) / 1000
    deltas = scheduler.sigmas[1:] - scheduler.sigmas[:-1]
    return scheduler.sigmas.numpy(), timesteps.numpy(), deltas.numpy()


def assert_same(ours: Schedule, theirs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    for name, expected in zip(("sigmas", "timesteps", "deltas"), theirs, strict=True):
        actual = getattr(ours, name)
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, expected, err_msg=name)


def test_default_sigmas_equal_the_reference_for_every_step_count() -> None:
    for steps in range(1, 301):
        np.testing.assert_array_equal(
            default_sigmas(steps), np.asarray(get_default_z_image_sigmas(steps), np.float32), err_msg=f"{steps} steps"
        )


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0, 2.7])
@pytest.mark.parametrize("steps", [1, 4, 8, 9, 50])
def test_schedule_of_steps_equals_diffusers(steps: int, shift: float) -> None:
    ours = schedule(ScheduleSpec(shift=shift, num_train_timesteps=1000), steps=steps)
    assert ours.num_steps == steps
    assert_same(ours, reference(shift, get_default_z_image_sigmas(steps)))


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.9, 0.5, 0.1], [0.7, 0.31, 0.002]])
def test_explicit_sigmas_are_shifted_as_diffusers_shifts_them(sigmas: list[float]) -> None:
    assert_same(schedule(SPEC, sigmas=sigmas), reference(3.0, sigmas))


def test_a_request_may_replace_the_shift() -> None:
    assert_same(schedule(SPEC, steps=8, shift=6.0), reference(6.0, get_default_z_image_sigmas(8)))


def test_eight_step_values_of_the_model_card() -> None:
    expected = [1, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3, 0]
    np.testing.assert_allclose(schedule(SPEC, steps=8).sigmas, expected, atol=5e-7)


@pytest.mark.parametrize("steps", [1, 8, 50, 1000])
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_no_step_is_without_length(steps: int, shift: float) -> None:
    ours = schedule(SPEC, steps=steps, shift=shift)
    assert np.all(ours.deltas < 0)
    assert ours.sigmas[-1] == 0
    np.testing.assert_allclose(ours.deltas.astype(np.float64).sum(), -1, atol=1e-5)


def reference_guidance(sigmas: list[float], guidance: float, truncation: float) -> list[float]:
    """ZImagePipeline's rule, kept in its own arithmetic: torch float32 to Python floats."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    scheduler.set_timesteps(sigmas=sigmas)
    norms = ((1000 - scheduler.timesteps.to(torch.float32)) / 1000).tolist()
    return [0.0 if truncation <= 1 and norm > truncation else guidance for norm in norms]


@pytest.mark.parametrize("truncation", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0, 1.5])
@pytest.mark.parametrize("steps", [1, 4, 8, 9, 50])
def test_guidance_stops_after_the_truncation_as_in_diffusers(steps: int, truncation: float) -> None:
    expected = reference_guidance(get_default_z_image_sigmas(steps), 4.0, truncation)
    actual = cfg.guidance(samplers.plan("euler", schedule(SPEC, steps=steps)), 4.0, truncation, 0.0).negative
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)


def test_shift_one_changes_nothing() -> None:
    np.testing.assert_array_equal(shifted([1.0, 0.3], 1.0), np.asarray([1.0, 0.3], np.float32))


def test_a_step_without_length_is_refused_by_position() -> None:
    with pytest.raises(ValueError, match=r"at step 1 is followed by 0\.5"):
        schedule(SPEC, sigmas=[1.0, 0.25, 0.25 - 1e-12], shift=3.0)


def test_steps_and_sigmas_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="either steps or sigmas"):
        schedule(SPEC, steps=2, sigmas=[1.0, 0.5])
    with pytest.raises(ValueError, match="either steps or sigmas"):
        schedule(SPEC)


@pytest.mark.parametrize(("shift", "train"), [(0.0, 1000), (-1.0, 1000), (float("nan"), 1000), (3.0, 0)])
def test_a_spec_without_a_meaning_is_refused(shift: float, train: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        ScheduleSpec(shift=shift, num_train_timesteps=train)


@pytest.mark.parametrize("steps", [2, 8, 9, 50])
@pytest.mark.parametrize("shape", ["karras", "exponential", "beta"])
def test_shapes_of_diffusers_equal_its_own(shape: str, steps: int) -> None:
    """Given by the request or by the checkpoint; scipy's quantiles may differ in the last bit."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0, **{f"use_{shape}_sigmas": True})
    theirs.set_timesteps(sigmas=get_default_z_image_sigmas(steps))
    asked = schedule(SPEC, steps=steps, shape=shape)
    np.testing.assert_allclose(asked.sigmas, theirs.sigmas.numpy(), rtol=0 if shape != "beta" else 2e-7)
    assert_same(schedule(replace(SPEC, shape=shape), steps=steps), (asked.sigmas, asked.timesteps, asked.deltas))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096, 16384])
def test_a_shift_that_grows_with_the_picture_is_that_of_diffusers(tokens: int, kind: Any) -> None:
    dynamic = DynamicShift(kind=kind)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, shift=3.0)
    theirs.set_timesteps(sigmas=get_default_z_image_sigmas(9), mu=calculate_shift(tokens))
    ours = schedule(replace(SPEC, dynamic=dynamic, is_dynamic=True), steps=9, tokens=tokens)
    np.testing.assert_array_equal(ours.sigmas, theirs.sigmas.numpy())
    # A shift of the request's own is a static one.
    grown = replace(SPEC, dynamic=dynamic, is_dynamic=True)
    assert_same(schedule(grown, steps=9, shift=3.0, tokens=tokens), of(schedule(SPEC, steps=9)))


def test_a_shift_that_grows_out_of_its_range_is_refused() -> None:
    dynamic = DynamicShift(max=9.0)
    with pytest.raises(ValueError, match=r"for 4096 image tokens is 8103.08, .*; give a shift in its place"):
        schedule(replace(SPEC, dynamic=dynamic, is_dynamic=True), steps=4, tokens=4096)
    with pytest.raises(ValueError, match="must differ, got 256 for both"):
        replace(SPEC, dynamic=DynamicShift(max_tokens=256), is_dynamic=True)
    assert replace(SPEC, dynamic=DynamicShift(max_tokens=256)).shift_of(4096) == 3, "of ends that nobody asks for"


@pytest.mark.parametrize("shape", ["linear", "karras"])
def test_levels_are_stretched_to_a_last_one(shape: str) -> None:
    flags = {"use_karras_sigmas": True} if shape == "karras" else {}
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1, **flags)
    theirs.set_timesteps(sigmas=get_default_z_image_sigmas(8))
    ours = schedule(replace(SPEC, terminal=0.1), steps=8, shape=shape)
    np.testing.assert_array_equal(ours.sigmas, theirs.sigmas.numpy())
    assert ours.sigmas[-2] == pytest.approx(0.1)
    assert schedule(replace(SPEC, terminal=0.1), steps=1).sigmas.tolist() == [1, 0]  # nothing lies between


def of(plan: Schedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return plan.sigmas, plan.timesteps, plan.deltas
