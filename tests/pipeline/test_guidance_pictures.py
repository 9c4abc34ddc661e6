"""Whole runs under every guidance that a request can ask for, against numpy around the reference's transformer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from max_zimage import FirstBlockCache, TaylorSeer, ZImagePipeline
from max_zimage.compile import modules
from max_zimage.device.devices import download
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling import samplers
from max_zimage.sampling.guidance import Variant
from tests.recording import RecordProperty
from tests.references import step_caches
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
from tests.references.sampler_walk import SamplerWalk
from tests.references.step_caches import unpacked
from tests.references.without_layers import without_layers
from tests.sampling.guiders import NumpyGuide
from tests.tolerances import BFLOAT16_RATIO, SAMPLED_L2, STAGES_L2

TWO = Call(prompts=(30, 65), negatives=(20, 40), steps=6, guidance=3.0, height=80, width=112)
ONE = Call(prompts=(33,), negatives=(12,), steps=9, guidance=4.0, height=64, width=64)
UNGUIDED = Call(prompts=(33,), steps=8, guidance=0.0, height=64, width=64)
EVER, PLAIN = tuple(range(50)), Variant()


@dataclass(frozen=True)
class Case:
    """A request, and what numpy is to do.

    Attributes:
        call: The request without guidance's own fields.
        asked: These.
        variant: What they mean.
        guided: Steps of which guidance is part.
        scales: Guidance scale of each step; that of the call if not given.
        skipped: Layers that are left out of a branch, and the steps of which it is part.
    """

    call: Call
    asked: dict[str, Any]
    variant: Variant = PLAIN
    guided: tuple[int, ...] = EVER
    scales: tuple[float, ...] = ()
    skipped: tuple[tuple[int, ...], tuple[int, ...]] = field(default=((), ()))


def apg(**more: Any) -> tuple[dict[str, Any], Variant]:
    asked = {"guidance_variant": "apg", **{f"apg_{name}": value for name, value in more.items()}}
    return asked, Variant(name="apg", **{"norm_threshold": 15.0, **more})


STAR = {"guidance_variant": "cfg_zero_star"}
CASES = {
    "zero star": Case(TWO, STAR, Variant(name="cfg_zero_star")),
    "zero init": Case(ONE, STAR | {"zero_init": True}, Variant(name="cfg_zero_star", zero_init=True)),
    "apg": Case(TWO, *apg()),
    "apg with momentum": Case(TWO, *apg(eta=0.0, momentum=-0.5, norm_threshold=10.0)),
    "rescale": Case(TWO, {"guidance_rescale": 0.7}, Variant(rescale=0.7)),
    "apg, rescale": Case(
        ONE, apg(eta=0.5)[0] | {"guidance_rescale": 0.4}, Variant(name="apg", eta=0.5, norm_threshold=15.0, rescale=0.4)
    ),
    "interval": Case(ONE, {"guidance_interval": (0.2, 0.6)}, guided=(2, 3, 4, 5)),
    "interval, zero star": Case(
        ONE, STAR | {"guidance_interval": (0.0, 0.5)}, Variant(name="cfg_zero_star"), guided=(0, 1, 2, 3, 4)
    ),
    "scale by step": Case(
        TWO, {"guidance_scale": [4.0, 0.0, 2.0, 1.0, 0.5, 0.0]}, scales=(4.0, 0.0, 2.0, 1.0, 0.5, 0.0)
    ),
    "skipped layers": Case(UNGUIDED, {"slg_scale": 2.5}, skipped=((1, 2), (1, 2, 3))),
    "skipped layers, guidance": Case(ONE, {"slg": True}, skipped=((1, 2), (1, 2, 3, 4))),
    "skipped layers of one's own": Case(
        TWO, {"slg_scale": 1.5, "slg_layers": [3], "slg_start": 0.5, "slg_stop": 1.0}, skipped=((3,), (3, 4, 5))
    ),
    "skipped layers, apg, rescale": Case(
        ONE,
        apg()[0] | {"slg_scale": 2.0, "guidance_rescale": 0.5},
        Variant(name="apg", norm_threshold=15.0, rescale=0.5),
        skipped=((1, 2), (1, 2, 3, 4)),
    ),
}


def request(pair: Pair, case: Case, **more: Any) -> GenerationRequest:
    return request_with(pair, case.call, **{**case.asked, **more})


def ours(pair: Pair, case: Case, **more: Any) -> FloatArray:
    return np.asarray(download(finished_run(pair.ours, request(pair, case, **more)).latents), np.float32)


def theirs(pair: Pair, case: Case, sampler: str = "euler") -> FloatArray:
    call, asked = case.call, request(pair, case, sampler=sampler)
    positive, negative = reference_features(pair, call)
    plan = samplers.plan(sampler, asked.schedule(pair.ours.sources.specs.schedule))
    latents = packed(noise(pair, call))
    walk, guides = SamplerWalk(plan, call, latents), [NumpyGuide(case.variant) for _ in latents]
    layers, steps = case.skipped
    for index in range(plan.count):
        step = int(plan.steps[index])
        squares = np.stack([unpacked(each, call.height // 8, call.width // 8) for each in latents])
        time = float(plan.timesteps[index])
        first = reference_prediction(pair, squares, time, list(positive))
        scale = (case.scales[step] if case.scales else call.guidance) if step in case.guided else 0.0
        other = reference_prediction(pair, squares, time, list(negative)) if scale else first
        added = np.zeros_like(first)
        if step in steps:
            with without_layers(pair, layers):
                added = np.float32(asked.slg_scale) * (
                    first - reference_prediction(pair, squares, time, list(positive))
                )
        made = [guide(first[at], other[at], scale, added[at], index) for at, guide in enumerate(guides)]
        latents = walk.update(index, latents, packed(np.stack(made).astype(np.float32)))
    return latents


def cases(names: Iterable[str]) -> Iterator[ParameterSet]:
    """The tiny model is a tenth of the work, but has no layers to leave out; the embedded one has them."""
    for name in names:
        if CASES[name].skipped[0]:
            yield pytest.param(name, "embedded")
        else:
            yield pytest.param(name, "tiny64")
            yield pytest.param(name, "embedded", marks=pytest.mark.slow)


@pytest.fixture
def pair(model: str, request: pytest.FixtureRequest) -> Pair:
    chosen: Pair = request.getfixturevalue(model)
    return chosen


@pytest.mark.parametrize(("name", "model"), cases(CASES))
def test_a_run(name: str, pair: Pair, record_property: RecordProperty) -> None:
    error = relative_l2(ours(pair, CASES[name]), theirs(pair, CASES[name]))
    record_property("relative_l2", error)
    assert error <= SAMPLED_L2


@pytest.mark.parametrize(("name", "model"), cases(["zero star", "apg with momentum", "skipped layers of one's own"]))
def test_a_run_under_a_sampler_of_two_evaluations(name: str, pair: Pair) -> None:
    """Windows count steps; momentum and what is remembered go by evaluations."""
    expected = theirs(pair, CASES[name], "heun")
    assert relative_l2(ours(pair, CASES[name], sampler="heun"), expected) <= SAMPLED_L2


def test_another_variant_compiles_nothing(embedded: Pair) -> None:
    ours(embedded, CASES["apg"])
    before = dict(modules.counts)
    for name in ("zero star", "rescale", "interval", "scale by step", "skipped layers"):
        ours(embedded, CASES[name])
    assert dict(modules.counts) == before


@pytest.mark.parametrize("cache", [FirstBlockCache(threshold=1e-30), TaylorSeer(cache_interval=1)], ids=str)
def test_a_cache_that_leaves_nothing_out_changes_nothing(cache: FirstBlockCache | TaylorSeer, embedded: Pair) -> None:
    for name in ("zero star", "apg with momentum", "interval, zero star"):
        plain = ours(embedded, CASES[name])
        assert relative_l2(ours(embedded, CASES[name], step_cache=cache), plain) <= SAMPLED_L2, name


@pytest.mark.parametrize(
    "cache", [FirstBlockCache(threshold=0.2), TaylorSeer(cache_interval=3, warmup_steps=3)], ids=str
)
def test_a_cache_that_leaves_evaluations_out(cache: FirstBlockCache | TaylorSeer, embedded: Pair) -> None:
    """The variant has the velocities that the cache makes."""
    call = Call(prompts=(12, 40), negatives=(70, 9), steps=12, guidance=2.0, height=80, width=112)
    case = Case(call, *apg(eta=0.3, momentum=-0.5))
    run = embedded.ours.denoising(inputs_of(embedded.ours, request(embedded, case, step_cache=cache)))
    run.run()
    expected, flags = step_caches.run(embedded, call, step_caches.algorithm(cache), variant=case.variant)
    np.testing.assert_array_equal(run.computed(), flags)
    assert 1 <= flags[:, 0].sum() < len(flags)
    assert relative_l2(np.asarray(download(run.latents)), expected[-1]) <= STAGES_L2["step"]


def test_a_picture_is_the_same_alone_and_with_others(embedded: Pair) -> None:
    """Sums run over one picture, and momentum is one for each."""
    pipeline: ZImagePipeline = embedded.ours
    asked: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 5, "guidance_scale": 3.0}
    asked |= {"guidance_variant": "apg", "apg_momentum": -0.5, "guidance_rescale": 0.5, "output_type": "latent"}
    both = np.asarray(pipeline("a red star", num_images_per_prompt=2, seed=4, **asked))
    alone = np.asarray(pipeline("a red star", seed=5, **asked))
    assert relative_l2(both[1:], alone) <= SAMPLED_L2


@pytest.mark.slow  # as the other tests in bfloat16: its graphs take minutes to compile
@pytest.mark.parametrize("name", ["zero star", "apg with momentum", "skipped layers, guidance", "interval"])
def test_in_bfloat16_it_is_as_near_as_the_reference(
    name: str, embedded: Pair, embedded_bfloat16: Pair, record_property: RecordProperty
) -> None:
    exact = theirs(embedded, CASES[name])
    usual = relative_l2(theirs(embedded_bfloat16, CASES[name]), exact)
    error = relative_l2(ours(embedded_bfloat16, CASES[name]), exact)
    record_property("bfloat16_ratio", error / usual)
    assert error <= BFLOAT16_RATIO * usual


def test_an_interval_runs_one_branch_outside(embedded: Pair) -> None:
    run = embedded.ours.denoising(inputs_of(embedded.ours, request(embedded, CASES["interval"])))
    run.run()
    assert run.computed().sum(axis=1).tolist() == [1, 1, 2, 2, 2, 2, 1, 1, 1]
