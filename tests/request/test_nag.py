"""Requests with normalized attention guidance: what becomes of the negative prompt and of what it stands in for."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest

from max_zimage.errors import RequestError, RequestWarning
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.schedule import ScheduleSpec
from max_zimage.sampling.step_cache import FirstBlockCache
from tests.request.test_request import DEFAULTS, LIMITS, make

SPEC = ScheduleSpec(shift=3.0, num_train_timesteps=1000)


def with_nag(**arguments: Any) -> GenerationRequest:
    return make(**{"guidance_scale": 0, "nag_scale": 5} | arguments)


@pytest.mark.parametrize(
    ("given", "expected"), [(None, ("",)), ("blurry", ("blurry",))], ids=["the empty one", "one that is named"]
)
def test_it_has_a_negative_prompt(given: str | None, expected: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RequestWarning)
        request = with_nag(negative_prompt=given)
    assert (request.negative_prompts, request.use_guidance, request.uses_negative) == (expected, False, True)
    assert request.num_branches == 2


def test_off_is_a_request_without_it() -> None:
    request = with_nag(nag_scale=0)
    assert (request.nag_scale, request.negative_prompts, request.num_branches) == (0.0, (), 1)


@pytest.mark.parametrize("scale", [1, 1.0, 1000])
def test_the_ends_of_its_range(scale: float) -> None:
    assert with_nag(nag_scale=scale, nag_tau=1, nag_alpha=1, nag_sigma_end=1).nag_scale == scale


def test_as_many_negative_prompts_as_prompts() -> None:
    assert with_nag(prompt=["a", "b"], negative_prompt=["c", "d"]).negative_prompts == ("c", "d")
    with pytest.raises(RequestError, match="one string or as many as prompts"):
        with_nag(prompt=["a", "b"], negative_prompt=["c", "d", "e"])


def test_a_default_step_cache_is_left_out() -> None:
    cached = replace(DEFAULTS, step_cache=FirstBlockCache())
    with pytest.warns(RequestWarning, match="nag_scale do not go together"):
        request = GenerationRequest.create(
            limits=LIMITS, defaults=cached, prompt="a", seed=1, guidance_scale=0, nag_scale=5
        )
    assert request.step_cache is None


def test_a_noise_level_that_the_first_step_has() -> None:
    assert len(with_nag(nag_sigma_end=1).schedule(SPEC).deltas) == 8
    with pytest.raises(RequestError, match="nag_sigma_end 1 is above all noise levels"):
        with_nag(nag_sigma_end=1, sigmas=[0.9, 0.5]).schedule(SPEC)
