"""Numbers at the ends of their ranges: whatever is accepted leaves work to do, and what does not is refused by name."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from max_zimage.errors import RequestError
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling import samplers
from max_zimage.sampling.guidance import cfg
from max_zimage.sampling.ranges import MAX_SHIFT, MIN_SHIFT
from max_zimage.sampling.schedule import ScheduleSpec, first_step, schedule, smallest_strength
from max_zimage.sampling.step_cache import FirstBlockCache, TaylorSeer
from tests.request.test_request import DEFAULTS, LIMITS, make

SPECS = [ScheduleSpec(shift=shift, num_train_timesteps=1000) for shift in (MIN_SHIFT, 1.0, 3.0, 6.0, MAX_SHIFT)]
NUMBERS: list[Any] = [0.0, 5e-324, 1e-300, 1e-46, 1e-45, 1e-40, 1.2e-38, 1e-30, 1e-17, 1.2e-16, 1e-7]
NUMBERS += [0.01, 0.5, 0.6, 0.999]
NUMBERS += [math.nextafter(1.0, 0.0), 1.0 - 1e-8, 1.0, 1.0 + 1e-12, 3.0, 100.0, 1e3, 1e19, 3e38, 3.5e38, 1e300]
NUMBERS += [10**400, -1e-300, -1.0, math.inf, math.nan, np.float32(1e-45), np.float16(6e-8), np.longdouble("1e-4000")]
FLOATS = [number for number in NUMBERS if type(number) is float]
PICTURE = np.zeros((128, 96, 3), np.uint8)


def check(request: GenerationRequest, spec: ScheduleSpec) -> None:
    """What holds of any request that was accepted."""
    plan = request.schedule(spec)
    assert plan.num_steps >= 1
    assert plan.sigmas[0] > 0
    assert plan.sigmas[-1] == 0
    assert (plan.deltas < 0).all()
    assert (np.diff(plan.sigmas) == plan.deltas).all()
    assert all(np.isfinite(each).all() for each in (plan.sigmas, plan.timesteps, plan.deltas))
    evaluated = samplers.plan("euler", plan)
    guidance = cfg.guidance(evaluated, request.guidance_scale, request.cfg_truncation, 0.0).negative
    assert np.isfinite(guidance).all()
    assert (guidance > 0).any() or not request.use_guidance or plan.timesteps[0] > request.cfg_truncation
    assert np.isfinite(np.float32(request.cfg_normalization))
    assert (np.float32(request.cfg_normalization) > 0) == (request.cfg_normalization > 0)
    steps = plan.num_steps
    if isinstance(request.step_cache, FirstBlockCache):
        assert np.isfinite(request.step_cache.thresholds(steps)).all()
        assert (request.step_cache.thresholds(steps) > 0).any() == (request.step_cache.threshold > 0)
    elif isinstance(request.step_cache, TaylorSeer):
        assert np.isfinite(request.step_cache.coefficients(steps)).all()
        assert not request.step_cache.computes(steps).all() or request.step_cache.cache_interval == 1


def drawn(random: np.random.Generator) -> dict[str, Any]:
    """A request with some fields at their ends."""

    def one() -> Any:
        return NUMBERS[random.integers(len(NUMBERS))]

    some: dict[str, Any] = {name: one() for name in ("shift", "guidance_scale", "cfg_normalization", "cfg_truncation")}
    some["shift_terminal"] = one()
    some["num_inference_steps"] = int(random.choice([1, 2, 7, 8, 999, 1000]))
    if random.random() < 0.5:
        some |= {"image": PICTURE, "strength": one()}
    if random.random() < 0.3:
        some["sigmas"] = sorted(set(random.choice(FLOATS, random.integers(1, 5)).tolist()), reverse=True)
        del some["num_inference_steps"]
    if random.random() < 0.5:
        cache = ("first_block:threshold={}", "first_block:warmup_steps={:.0f}", "taylorseer:warmup_steps={:.0f}")
        text = [*cache, "taylorseer:cache_interval={:.0f}"][random.integers(4)]
        some["step_cache"] = text.format(random.choice(FLOATS))
    return {name: value for name, value in some.items() if name in ("image",) or random.random() < 0.5}


@pytest.mark.filterwarnings("error")
def test_whatever_is_accepted_leaves_work_to_do() -> None:
    random, accepted, refused = np.random.default_rng(0), 0, 0
    for _ in range(3000):
        arguments = drawn(random)
        arguments.pop("strength", None) if "image" not in arguments else None
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "guidance_scale is 0")
                request = make(**arguments)
            for spec in SPECS:
                check(request, spec) if request.sigmas is None else _check_or_refused(request, spec)
        except RequestError:
            refused += 1
        except Exception as error:
            shown = {name: value for name, value in arguments.items() if name != "image"}
            raise AssertionError(f"{shown}: {type(error).__name__}: {error}") from error
        else:
            accepted += 1
    assert accepted > 300
    assert refused > 300


def _check_or_refused(request: GenerationRequest, spec: ScheduleSpec) -> None:
    """Levels of one's own may fall apart under one shift and together under another."""
    try:
        check(request, spec)
    except RequestError as error:
        falls = "sigmas: sigmas must fall at every step in float32 after the shift"
        assert str(error).startswith((falls, f"shift_terminal {request.shift_terminal} is a level between 1 and 0"))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 9, 50, 100, 999, 1000])
def test_the_smallest_strength_that_leaves_a_step(steps: int) -> None:
    least = smallest_strength(steps)
    assert first_step(steps, least) == steps - 1
    assert first_step(steps, least * 0.98) == steps
    make(image=PICTURE, strength=least, num_inference_steps=steps)
    for strength in (least * 0.98, 1e-17, 1e-300, 5e-324):
        with pytest.raises(RequestError) as caught:
            make(image=PICTURE, strength=strength, num_inference_steps=steps)
        assert str(caught.value) == (
            f"strength {strength} leaves none of the {steps} steps; the smallest that leaves one is {least}"
        )


def test_every_number_of_even_steps_falls_under_every_shift() -> None:
    for steps in [*range(1, 40), 100, 333, 500, 777, *range(980, LIMITS.max_steps + 1)]:
        for spec in SPECS:
            assert schedule(spec, steps=steps).num_steps == steps
    assert DEFAULTS.num_inference_steps <= LIMITS.max_steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [1.0, 1e-45]}, "sigmas must be at least 1.18e-38, the smallest of float32, got 1e-45"),
        ({"sigmas": [1.0, 1e-46]}, "sigmas must be at least 1.18e-38, the smallest of float32, got 1e-46"),
        ({"guidance_scale": 1e-300}, "guidance_scale must be 0, or from 1.18e-38 to 3.4e+38 in float32, got 1e-300"),
        ({"guidance_scale": 10**400}, "guidance_scale must be a finite number of at least 0, got a number beyond what"),
        ({"cfg_normalization": 1e300}, "cfg_normalization must be 0, or from 1.18e-38 to 3.4e+38 in float32, got 1e+"),
        ({"cfg_normalization": 1e-300}, "cfg_normalization must be 0, or from 1.18e-38"),
        ({"step_cache": "first_block:threshold=1e-300"}, "step_cache: threshold must be 0, or from 1.18e-38 to"),
        ({"step_cache": "first_block:threshold=1e300"}, "step_cache: threshold must be 0, or from 1.18e-38 to"),
        (
            {"step_cache": f"taylorseer:warmup_steps={10**30}"},
            "step_cache: warmup_steps must be at most 1000000, got 1",
        ),
        ({"step_cache": f"taylorseer:cache_interval={10**30}"}, "step_cache: cache_interval must be at most 1000000"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:40],
)
def test_what_float32_would_change_in_silence_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make(**arguments)
    assert str(caught.value).startswith(message)


def test_levels_that_a_shift_brings_together_are_refused_by_name() -> None:
    request = make(sigmas=[1.0, 0.9999999])
    assert request.schedule(ScheduleSpec(shift=1.0, num_train_timesteps=1000)).num_steps == 2
    with pytest.raises(RequestError, match="sigmas: sigmas must fall at every step in float32 after the shift"):
        request.schedule(ScheduleSpec(shift=100.0, num_train_timesteps=1000))
    low = make(sigmas=[1.5e-38])
    with pytest.raises(RequestError, match="sigmas: sigmas must fall"):
        low.schedule(ScheduleSpec(shift=0.01, num_train_timesteps=1000))
