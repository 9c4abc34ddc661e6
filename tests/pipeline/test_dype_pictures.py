"""Whole runs with extrapolated positions, against the reference's transformer with other rotary numbers in it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from max_zimage import FirstBlockCache, TaylorSeer, ZImagePipeline
from max_zimage.compile import modules
from max_zimage.device.devices import download
from max_zimage.errors import RequestWarning
from max_zimage.pipeline.planning import extrapolation
from max_zimage.sampling.guidance import Variant
from tests.pipeline.test_guidance_pictures import Case, apg, ours, request, theirs
from tests.recording import RecordProperty
from tests.references import step_caches
from tests.references.diffusers_runs import (
    Call,
    FloatArray,
    Pair,
    packed,
    reference_features,
    reference_prediction,
    relative_l2,
)
from tests.references.engine_runs import inputs_of
from tests.references.extrapolated import extrapolating
from tests.references.step_caches import unpacked
from tests.tolerances import SAMPLED_L2, STAGES_L2

# Captions of unequal length under both branches; sides of which one or both are beyond the base, with image padding.
TWO = Call(prompts=(30, 65), negatives=(20, 40), steps=5, guidance=3.0, height=80, width=176)
ONE = Call(prompts=(33,), negatives=(12,), steps=6, guidance=2.0, height=272, width=320)
UNGUIDED = Call(prompts=(33,), steps=6, guidance=0.0, height=208, width=144)


def case(call: Call, method: str, base: int, asked: dict[str, Any] | None = None, **more: Any) -> Case:
    given = {"dype": method, "dype_base_resolution": base}
    return Case(call, given | (asked or {}), **more)


CASES = {
    "vision_yarn": case(TWO, "vision_yarn", 128),
    "vision_yarn, other numbers": case(
        ONE, "vision_yarn", 256, {"dype_scale": 0.8, "dype_exponent": 1.0, "dype_start_sigma": 0.6}
    ),
    "vision_yarn, large scale": case(UNGUIDED, "vision_yarn", 128, {"dype_scale": 6.0}),
    "yarn": case(TWO, "yarn", 128, {"dype_scale": 1.0}),
    "yarn, more tokens": case(ONE, "yarn", 256, {"dype_scale": 0.7}),
    "ntk": case(TWO, "ntk", 128),
    "ntk, more tokens": case(ONE, "ntk", 256, {"dype_exponent": 1.0}),
    "scale by step": case(
        TWO, "vision_yarn", 64, {"guidance_scale": [4.0, 0.0, 2.0, 0.0, 0.5]}, scales=(4.0, 0.0, 2.0, 0.0, 0.5)
    ),
    "skipped layers": case(UNGUIDED, "vision_yarn", 128, {"slg_scale": 2.5}, skipped=((1, 2), (1, 2))),
    "apg": case(TWO, "yarn", 128, apg()[0], variant=apg()[1]),
}


def expected_of(pair: Pair, given: Case, sampler: str = "euler") -> FloatArray:
    dype = extrapolation(request(pair, given), given.call.height // 16, given.call.width // 16)
    assert dype is not None
    with extrapolating(pair, dype, given.call.height, given.call.width):
        return theirs(pair, given, sampler)


def without(given: Case) -> Case:
    return replace(given, asked={name: value for name, value in given.asked.items() if not name.startswith("dype")})


@pytest.mark.parametrize("name", CASES)
def test_a_run(name: str, embedded: Pair, record_property: RecordProperty) -> None:
    found = ours(embedded, CASES[name])
    error = relative_l2(found, expected_of(embedded, CASES[name]))
    record_property("relative_l2", error)
    assert error <= SAMPLED_L2
    assert relative_l2(found, ours(embedded, without(CASES[name]))) > 1e-2


@pytest.mark.parametrize("name", ["vision_yarn", "scale by step"])
def test_a_table_belongs_to_the_level_of_its_evaluation(name: str, embedded: Pair) -> None:
    """A sampler with two evaluations in a step makes the second one at another level."""
    assert relative_l2(ours(embedded, CASES[name], sampler="heun"), expected_of(embedded, CASES[name], "heun")) <= (
        SAMPLED_L2
    )


@pytest.mark.parametrize("method", ["vision_yarn", "yarn", "ntk"])
@pytest.mark.parametrize("base", [176, 1024])
def test_a_picture_that_is_not_larger_is_the_same_to_the_bit(method: str, base: int, embedded: Pair) -> None:
    given = case(TWO, method, base)
    with pytest.warns(RequestWarning, match="changes nothing here: no side is longer"):
        found = ours(embedded, given)
    np.testing.assert_array_equal(found, ours(embedded, without(given)))


def test_another_method_compiles_nothing(embedded: Pair) -> None:
    ours(embedded, CASES["ntk"])
    before = dict(modules.counts)
    for name in ("vision_yarn", "yarn, more tokens", "scale by step"):
        ours(embedded, CASES[name])
    assert dict(modules.counts) == before


@pytest.mark.parametrize("cache", [FirstBlockCache(threshold=1e-30), TaylorSeer(cache_interval=1)], ids=str)
def test_a_cache_that_leaves_nothing_out_changes_nothing(cache: FirstBlockCache | TaylorSeer, embedded: Pair) -> None:
    for name in ("vision_yarn", "apg"):
        plain = ours(embedded, CASES[name])
        assert relative_l2(ours(embedded, CASES[name], step_cache=cache), plain) <= SAMPLED_L2, name


@pytest.mark.parametrize(
    "cache", [FirstBlockCache(threshold=0.2), TaylorSeer(cache_interval=3, warmup_steps=3)], ids=str
)
def test_a_cache_that_leaves_evaluations_out(cache: FirstBlockCache | TaylorSeer, embedded: Pair) -> None:
    """First-block caching compares residuals of evaluations that have other tables."""
    call = Call(prompts=(12, 40), negatives=(70, 9), steps=12, guidance=2.0, height=80, width=176)
    given = case(call, "vision_yarn", 128)
    inputs = inputs_of(embedded.ours, request(embedded, given, step_cache=cache))
    run = embedded.ours.denoising(inputs)
    run.run()
    dype = inputs.dype
    assert dype is not None
    with extrapolating(embedded, dype, call.height, call.width):
        expected, flags = step_caches.run(embedded, call, step_caches.algorithm(cache), variant=Variant())
    np.testing.assert_array_equal(run.computed(), flags)
    assert 1 <= flags[:, 0].sum() < len(flags)
    assert relative_l2(np.asarray(download(run.latents)), expected[-1]) <= STAGES_L2["step"]


def test_a_picture_is_the_same_alone_and_with_others(embedded: Pair) -> None:
    pipeline: ZImagePipeline = embedded.ours
    asked: dict[str, Any] = {"height": 64, "width": 144, "num_inference_steps": 4, "guidance_scale": 3.0}
    asked |= {"dype": "vision_yarn", "dype_base_resolution": 64, "output_type": "latent"}
    both = np.asarray(pipeline(["a red star", "a blue ring on a green background, small"], seed=4, **asked))
    alone = np.asarray(pipeline("a blue ring on a green background, small", seed=5, **asked))
    assert relative_l2(both[1:], alone) <= SAMPLED_L2


def test_pictures_that_go_on_alone(embedded: Pair) -> None:
    """Their positions stay with them."""
    given = CASES["vision_yarn"]
    run = embedded.ours.denoising(inputs_of(embedded.ours, request(embedded, given)))
    run.advance()
    run.advance()
    run.keep([1])
    run.run()
    assert relative_l2(np.asarray(download(run.latents)), expected_of(embedded, given)[1:]) <= SAMPLED_L2


def test_image_to_image(embedded: Pair) -> None:
    """Its first level is below 1, and so is that of its first table."""
    image = np.random.default_rng(4).integers(0, 256, (UNGUIDED.height, UNGUIDED.width, 3), np.uint8)
    given = case(UNGUIDED, "vision_yarn", 128, {"image": image, "strength": 0.7, "seed": 3})
    inputs = inputs_of(embedded.ours, request(embedded, given, latents=None))
    dype, run = inputs.dype, embedded.ours.denoising(inputs)
    assert dype is not None
    latents = np.asarray(download(run.latents))
    run.run()
    features, _ = reference_features(embedded, UNGUIDED)
    sigmas = inputs.schedule.sigmas
    assert sigmas[0] < 0.95
    with extrapolating(embedded, dype, UNGUIDED.height, UNGUIDED.width):
        for now, after in pairwise(sigmas):
            squares = np.stack([unpacked(each, UNGUIDED.height // 8, UNGUIDED.width // 8) for each in latents])
            latents = latents - (after - now) * packed(reference_prediction(embedded, squares, 1 - now, list(features)))
    assert relative_l2(np.asarray(download(run.latents)), latents) <= SAMPLED_L2


def test_a_run_in_parts_is_the_whole_one(embedded: Pair) -> None:
    asked: dict[str, Any] = {"height": 64, "width": 144, "num_inference_steps": 5, "output_type": "latent"}
    asked |= {"dype": "vision_yarn", "dype_base_resolution": 64, "guidance_scale": 2.0}
    whole = np.asarray(embedded.ours("a red star", seed=4, **asked))
    first = np.asarray(embedded.ours("a red star", seed=4, denoising_end=0.5, **asked))
    second = np.asarray(embedded.ours("a red star", latents=first, denoising_start=0.5, **asked))
    np.testing.assert_array_equal(second, whole)


@pytest.mark.slow  # as the other tests in bfloat16: its graphs take minutes to compile
def test_in_bfloat16_it_is_as_near_as_the_reference(embedded: Pair, embedded_bfloat16: Pair) -> None:
    """Tables are float32 in both; the reference's own run in bfloat16 says how near one can come."""
    for name in ("vision_yarn", "ntk"):
        exact = expected_of(embedded, CASES[name])
        error = relative_l2(ours(embedded_bfloat16, CASES[name]), exact)
        assert error <= 2 * relative_l2(expected_of(embedded_bfloat16, CASES[name]), exact)
        assert error < 0.05
