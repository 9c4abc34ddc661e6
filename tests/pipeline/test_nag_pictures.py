"""Whole runs under normalized attention guidance, against the reference's transformer with torch's form of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from max_zimage import FirstBlockCache, ZImagePipeline
from max_zimage.compile import modules
from max_zimage.device.devices import download
from max_zimage.errors import RequestError
from max_zimage.pipeline.run import Run
from max_zimage.pipeline.steppers import stepper_of
from max_zimage.request.fields import ROWS
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling import samplers
from tests.recording import RecordProperty
from tests.references.diffusers_runs import (
    Call,
    FloatArray,
    Pair,
    noise,
    packed,
    reference_features,
    reference_prediction,
    relative_l2,
)
from tests.references.engine_runs import finished_run, inputs_of, request_with
from tests.references.nag import Nag, nag_prediction
from tests.references.sampler_walk import SamplerWalk
from tests.references.step_caches import unpacked
from tests.tolerances import SAMPLED_L2

TWO = Call(prompts=(30, 65), negatives=(70, 20), steps=4, guidance=0.0, height=80, width=112)
ONE = Call(prompts=(33,), negatives=(12,), steps=4, guidance=0.0, height=64, width=64)


USUAL = Nag()


@dataclass(frozen=True)
class Case:
    """A request, its further fields, and what they mean."""

    call: Call
    nag: Nag = USUAL
    sigma_end: float = 0.0
    sampler: str = "euler"

    @property
    def asked(self) -> dict[str, Any]:
        strength = {"nag_scale": self.nag.scale, "nag_tau": self.nag.tau, "nag_alpha": self.nag.alpha}
        return strength | {"nag_sigma_end": self.sigma_end, "sampler": self.sampler}


CASES = {
    "two prompts of unequal lengths": Case(TWO),
    "one": Case(ONE, Nag(scale=11.0, tau=1.5, alpha=0.5)),
    "two copies, the whole of it": Case(replace(ONE, copies=2, prompts=(12,)), Nag(alpha=1.0)),
    "until a noise level": Case(TWO, Nag(scale=3.0), sigma_end=0.75),
    "a sampler that remembers": Case(ONE, sampler="dpmpp_2m"),
    "a sampler of two evaluations": Case(ONE, sampler="heun", sigma_end=0.6),
}


def request(pair: Pair, case: Case, **more: Any) -> GenerationRequest:
    return request_with(pair, case.call, **{**case.asked, **more})


def run(pair: Pair, case: Case, **more: Any) -> Run:
    return finished_run(pair.ours, request(pair, case, **more))


def ours(pair: Pair, case: Case, **more: Any) -> FloatArray:
    return np.asarray(download(run(pair, case, **more).latents), np.float32)


def theirs(pair: Pair, case: Case) -> FloatArray:
    call, asked = case.call, request(pair, case)
    positive, negative = (
        [item for item in branch for _ in range(call.copies)]
        for branch in reference_features(pair, replace(call, guidance=1.0))
    )
    plan = samplers.plan(case.sampler, asked.schedule(pair.ours.sources.specs.schedule))
    latents = packed(noise(pair, call))
    walk = SamplerWalk(plan, call, latents)
    for index in range(plan.count):
        squares = np.stack([unpacked(each, call.height // 8, call.width // 8) for each in latents])
        time = float(plan.timesteps[index])
        if plan.sigmas[index] >= np.float32(case.sigma_end):
            made = nag_prediction(pair, squares, time, positive, negative, case.nag)
        else:
            made = reference_prediction(pair, squares, time, positive)
        latents = walk.update(index, latents, packed(made))
    return latents


@pytest.mark.parametrize("name", CASES)
def test_a_run(name: str, embedded: Pair, record_property: RecordProperty) -> None:
    case = CASES[name]
    found, expected = ours(embedded, case), theirs(embedded, case)
    error = relative_l2(found, expected)
    record_property("relative_l2", error)
    assert error <= SAMPLED_L2
    # Guidance that did nothing would pass if the reference did nothing either.
    assert relative_l2(ours(embedded, case, **off(case)), expected) > 0.005


def off(case: Case) -> dict[str, Any]:
    return {name: ROWS[name].default for name in case.asked if name.startswith("nag")} | {"negative_prompt": None}


@pytest.mark.parametrize("heads", ["tiny64", "tiny128"])
def test_other_heads(heads: str, request_fixture: Pair) -> None:
    case = Case(replace(TWO, steps=2))
    assert relative_l2(ours(request_fixture, case), theirs(request_fixture, case)) <= SAMPLED_L2


@pytest.fixture
def request_fixture(heads: str, request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(heads)
    return found


def test_a_scale_of_1_is_the_plain_run(embedded: Pair) -> None:
    plain = ours(embedded, CASES["one"], **off(CASES["one"]))
    assert relative_l2(ours(embedded, CASES["one"], nag_scale=1.0), plain) <= SAMPLED_L2


def test_other_values_compile_nothing(embedded: Pair) -> None:
    ours(embedded, CASES["one"])
    before = dict(modules.counts)
    for name in CASES:
        ours(embedded, CASES[name])
    assert dict(modules.counts) == before


def test_below_its_noise_level_one_branch_runs(embedded: Pair) -> None:
    case = CASES["until a noise level"]
    found = run(embedded, case)
    levels = request(embedded, case).schedule(embedded.ours.sources.specs.schedule).sigmas[:-1]
    assert found.computed().sum(axis=1).tolist() == [4 if level >= 0.75 else 2 for level in levels]
    assert 1 <= (levels >= 0.75).sum() < len(levels)


def test_a_noise_level_that_no_step_reaches(embedded: Pair) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    asked: dict[str, Any] = {"image": image, "strength": 0.3, "height": 64, "width": 64, "num_inference_steps": 8}
    with pytest.raises(RequestError, match=r"nag_sigma_end 0.9 is above all noise levels: the first step begins at 0"):
        embedded.ours("a red star", guidance_scale=0, nag_scale=5.0, nag_sigma_end=0.9, **asked)


def test_a_picture_is_the_same_alone_and_with_others_and_from_an_image(embedded: Pair) -> None:
    pipeline: ZImagePipeline = embedded.ours
    image = np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)
    asked: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 5, "guidance_scale": 0, "nag_scale": 4}
    asked |= {"negative_prompt": "red", "output_type": "latent"}
    ways: list[dict[str, Any]] = [{}, {"image": image, "strength": 0.6}]
    for more in ways:
        both = np.asarray(pipeline("a red star", num_images_per_prompt=2, seed=4, **asked, **more))
        alone = np.asarray(pipeline("a red star", seed=5, **asked, **more))
        assert relative_l2(both[1:], alone) <= SAMPLED_L2


def test_text_features_in_the_place_of_prompts(embedded: Pair) -> None:
    features = reference_features(embedded, replace(ONE, guidance=1.0))
    positive, negative = ([item.numpy() for item in each] for each in features)
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    case = CASES["one"]
    arguments = {name: value for name, value in embedded.arguments(case.call).items() if "prompt" not in name}
    sources = embedded.ours.sources
    values: dict[str, Any] = {**arguments, **case.asked, **given, "num_images_per_prompt": 1}
    asked = GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **values)
    found = embedded.ours.denoising(inputs_of(embedded.ours, asked))
    found.run()
    assert relative_l2(download(found.latents), ours(embedded, case)) <= SAMPLED_L2


def test_a_step_cache_is_refused_by_the_stepper_too(embedded: Pair) -> None:
    inputs = replace(inputs_of(embedded.ours, request(embedded, CASES["one"])), step_cache=FirstBlockCache())
    with pytest.raises(ValueError, match="a step cache cannot go with normalized attention guidance"):
        stepper_of(embedded.ours.transformer, inputs)


@pytest.mark.slow  # its graphs take minutes to compile
def test_bfloat16(embedded: Pair, embedded_bfloat16: Pair, record_property: RecordProperty) -> None:
    """At most twice as far from float32 as the plain run, which loses as much of the same."""
    case = CASES["two prompts of unequal lengths"]
    exact = theirs(embedded, case)
    torch_error = relative_l2(theirs(embedded_bfloat16, case), exact)
    error = relative_l2(ours(embedded_bfloat16, case), exact)
    record_property("bfloat16_ratio", error / torch_error)
    assert error <= 2 * torch_error
