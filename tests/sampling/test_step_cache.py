"""Settings of the step caches: how they are written, what is refused, and which steps they compute."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from max.pipelines.diffusion.config import DEFAULT_DENOISING_CACHE_CONFIG
from max.pipelines.diffusion.taylorseer import TaylorSeer as MaxTaylorSeer

from max_zimage import FirstBlockCache, TaylorSeer
from max_zimage.errors import RequestError
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import OFF, StepCache, configured, flags_of, format_step_cache, parse_step_cache

LIMITS = Limits(max_height=256, max_width=256, max_tokens=64, latent_channels=16, caption_dim=8)
TAYLORS = [
    TaylorSeer(cache_interval=interval, warmup_steps=warmup, max_order=order)
    for interval in (1, 2, 3, 5, 60)
    for warmup in (1, 2, 9)
    for order in (1, 2)
]


@pytest.mark.parametrize(
    "cache",
    [None, FirstBlockCache(), FirstBlockCache(threshold=1e-3, warmup_steps=4, block="layers"), *TAYLORS[:3]],
    ids=str,
)
def test_what_is_written_is_read(cache: StepCache | None) -> None:
    assert parse_step_cache(format_step_cache(cache)) == cache


def test_what_is_left_out_has_its_default() -> None:
    assert parse_step_cache("first_block") == FirstBlockCache(threshold=0.06, warmup_steps=0, block="noise_refiner")
    assert parse_step_cache(" taylorseer:max_order=2 , cache_interval=3") == TaylorSeer(
        cache_interval=3, warmup_steps=9, max_order=2
    )
    assert parse_step_cache(OFF) is None


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "": "a step cache is off, first_block or taylorseer",
        "teacache": "got 'teacache'",
        "off:threshold=1": "got 'off:threshold=1'",
        "first_block:interval=3": "first_block takes threshold, warmup_steps, block, each once as NAME=VALUE",
        "first_block:threshold": "each once as NAME=VALUE, got 'threshold'",
        "first_block:threshold=0.1,threshold=0.2": "each once as NAME=VALUE, got 'threshold=0.2'",
        "first_block:threshold=much": "threshold must be a number, got 'much'",
        "first_block:threshold=nan": "threshold must be a finite number of at least 0, got nan",
        "first_block:threshold=-1": "threshold must be a finite number of at least 0, got -1.0",
        "first_block:warmup_steps=1.5": "warmup_steps must be a whole number, got '1.5'",
        "first_block:warmup_steps=-1": "warmup_steps must be a whole number of at least 0, got -1",
        "first_block:block=blocks": "block must be noise_refiner or layers, got 'blocks'",
        "taylorseer:cache_interval=0": "cache_interval must be a whole number of at least 1, got 0",
        "taylorseer:warmup_steps=0": "warmup_steps must be a whole number of at least 1, got 0",
        "taylorseer:max_order=3": "max_order must be 1 or 2, got 3",
    }.items(),
)
def test_what_cannot_be_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_step_cache(text)


@pytest.mark.parametrize("cache", TAYLORS, ids=str)
def test_taylorseer_computes_the_steps_that_max_computes(cache: TaylorSeer) -> None:
    skipped = [MaxTaylorSeer.should_skip(step, cache.warmup_steps, cache.cache_interval) for step in range(50)]
    assert cache.computes(50).tolist() == [not skip for skip in skipped]


@pytest.mark.parametrize("cache", TAYLORS, ids=str)
def test_taylorseer_expands_as_diffusers_does(cache: TaylorSeer) -> None:
    """On a series of numbers: differences from the gaps, predictions from the coefficients."""
    series = np.cos(np.arange(50) / 4) + np.linspace(0, 3, 50) ** 2
    state = TaylorSeerState(torch.float64, cache.max_order)
    computes, gaps, coefficients = cache.computes(50), cache.gaps(50), cache.coefficients(50)
    value = first = second = series[0]
    for step in range(50):
        state.current_step = step
        if computes[step]:
            state.update((torch.tensor([series[step]]),))
            new = (series[step] - value) / gaps[step]
            value, first, second = series[step], new, (new - first) / gaps[step]
            assert not coefficients[step].any()
        else:
            ours = value + first * coefficients[step, 0] + second * coefficients[step, 1]
            assert ours == pytest.approx(float(state.predict()[0]), rel=1e-6)


def test_first_block_thresholds_leave_the_warm_up_alone() -> None:
    thresholds = FirstBlockCache(threshold=0.5, warmup_steps=2).thresholds(5)
    assert thresholds.dtype == np.float32
    assert thresholds.tolist() == [0, 0, 0.5, 0.5, 0.5]


def test_max_flags_and_back() -> None:
    assert configured(DEFAULT_DENOISING_CACHE_CONFIG) is None
    for cache in (FirstBlockCache(threshold=0.2), TAYLORS[4]):
        config = DEFAULT_DENOISING_CACHE_CONFIG.model_copy(update=flags_of(cache))
        assert configured(config, threshold=0.2) == cache
    # The block that MAX's flag means is the usual one; another has no flag.
    assert flags_of(FirstBlockCache(block="layers")) == {}


def request(steps: int, default: StepCache | None = None, **arguments: Any) -> GenerationRequest:
    defaults = RequestDefaults(height=64, width=64, num_inference_steps=steps, guidance_scale=0.0, step_cache=default)
    return GenerationRequest.create(limits=LIMITS, defaults=defaults, prompt="a star", seed=1, **arguments)


def test_a_request_names_its_cache_or_takes_the_default() -> None:
    default = FirstBlockCache(threshold=0.1)
    assert request(20).step_cache is None
    assert request(20, default).step_cache == default
    assert request(20, default, step_cache="off").step_cache is None
    assert request(20, default, step_cache="taylorseer").step_cache == TaylorSeer()
    assert request(20, step_cache=default).step_cache == default


@pytest.mark.parametrize(
    ("cache", "enough"), [("taylorseer", 10), ("first_block", 2), ("first_block:warmup_steps=6", 7)]
)
def test_a_warm_up_over_all_steps_is_refused(cache: str, enough: int) -> None:
    assert request(enough, step_cache=cache).step_cache == parse_step_cache(cache)
    with pytest.raises(RequestError, match=rf"its warm-up takes all {enough - 1} steps and nothing is left out; ask"):
        request(enough - 1, step_cache=cache)


def test_steps_that_an_image_leaves_out_do_not_count() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    assert request(20, step_cache="taylorseer", image=image, strength=0.5).step_cache == TaylorSeer()
    with pytest.raises(RequestError, match="takes all 9 steps"):
        request(18, step_cache="taylorseer", image=image, strength=0.5)


def test_a_default_over_all_steps_is_left_aside_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="its warm-up takes all 8 steps and nothing is left out; this request runs"):
        assert request(8, TaylorSeer()).step_cache is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert request(8, TaylorSeer(), step_cache="off").step_cache is None


@pytest.mark.parametrize("cache", ["first_block:threshold=0", "taylorseer:cache_interval=1"])
def test_settings_that_compute_everything_are_no_mistake(cache: str) -> None:
    assert request(8, step_cache=cache).step_cache == parse_step_cache(cache)


def test_what_is_no_cache_is_refused() -> None:
    with pytest.raises(RequestError, match=r"step_cache must be a FirstBlockCache, a TaylorSeer or a string, got 0.06"):
        request(20, step_cache=0.06)
    with pytest.raises(RequestError, match="step_cache: max_order must be 1 or 2"):
        request(20, step_cache="taylorseer:max_order=9")
