"""Whole runs under every sampler and with layers skipped, against numpy around the reference's transformer.

They share the graphs of two of the session's models: another sampler or branch compiles nothing. Samplers draw with the
tiny one, whose evaluations take a tenth of the embedded one's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from max_zimage.compile import modules
from max_zimage.device.devices import download
from max_zimage.pipeline.captions import captions_of_request
from max_zimage.pipeline.prepare import inputs_of_request
from max_zimage.sampling import samplers
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Branch, skip_layer
from max_zimage.sampling.names import SAMPLERS
from max_zimage.sampling.step_cache import FirstBlockCache, TaylorSeer
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
from tests.references.engine_runs import request_of
from tests.references.sampler_walk import SEED, SamplerWalk
from tests.references.step_caches import unpacked
from tests.references.without_layers import without_layers
from tests.tolerances import BFLOAT16_RATIO, WALKED_L2

LENGTHS = {
    f"{steps} steps{guided}": Call(prompts=(33,), steps=steps, guidance=3.0 if guided else 0.0, height=64, width=64)
    for steps in (8, 9, 20, 50)
    for guided in ("", ", guided")
}
CALLS = {
    "no guidance": Call(prompts=(33,), steps=6, guidance=0.0),
    "guidance": Call(prompts=(30, 65), negatives=(20, 40), steps=5, guidance=3.0, height=80, width=112),
    "guidance that ends": Call(prompts=(12,), negatives=("",), steps=6, guidance=2.0, cfg_truncation=0.4),
    **LENGTHS,
}
ALL = ("guidance", "8 steps", "9 steps, guided")
REMEMBERING = ("unipc", "er_sde", "dpmpp_2m_sde")
OF_THESE = ("no guidance", "20 steps, guided", "50 steps", "guidance that ends")
"""Samplers whose errors could add up, and further calls that every run of the tests has for them."""
SKIPPED = (1, 2)


def skipping(plan: Evaluations) -> Sequence[Branch]:
    return [skip_layer.branch(plan, scale=2.5, layers=SKIPPED, start=0.05, stop=0.6)]


def ours(pair: Pair, call: Call, sampler: str = "euler", *, skip: bool = False) -> FloatArray:
    """Final latents, float32 [pictures, image tokens, 4 · channels]."""
    pipeline, request = pair.ours, replace(request_of(pair, call), sampler=sampler, seed=SEED)
    captions = captions_of_request(request, pipeline.tokenizer, pipeline.text_encoder, pipeline.sources.limits)
    spec, others = pipeline.sources.specs.schedule, skipping if skip else None
    inputs = inputs_of_request(request, captions, spec, pipeline.transformer, pipeline.vae, others=others)
    run = pipeline.denoising(inputs)
    run.run()
    return np.asarray(download(run.latents), np.float32)


def theirs(pair: Pair, call: Call, sampler: str = "euler", *, skip: bool = False) -> FloatArray:
    """The same by the reference's transformer and the sampler's matrices in numpy."""
    positive, negative = reference_features(pair, call)
    request = request_of(pair, call)
    plan = samplers.plan(sampler, request.schedule(pair.ours.sources.specs.schedule))
    windows = skipping(plan)[0].scales if skip else np.zeros(plan.count)
    latents = packed(noise(pair, call))
    walk = SamplerWalk(plan, call, latents)
    for index in range(plan.count):
        squares = np.stack([unpacked(each, call.height // 8, call.width // 8) for each in latents])
        time = float(plan.timesteps[index])
        first = reference_prediction(pair, squares, time, list(positive))
        prediction = first
        if call.guidance and time <= call.cfg_truncation:
            other = reference_prediction(pair, squares, time, list(negative))
            prediction = first + np.float32(call.guidance) * (first - other)
        if windows[index]:
            with without_layers(pair, SKIPPED):
                prediction = prediction + windows[index] * (
                    first - reference_prediction(pair, squares, time, list(positive))
                )
        latents = walk.update(index, latents, packed(prediction))
    return latents


def cases() -> Iterator[ParameterSet]:
    """All lengths of all samplers; most of them are slow, since their matrices are compared at all lengths anyway.

    So are those of the embedded model, where the tiny one has the same.
    """
    for sampler, call in product(SAMPLERS, CALLS):
        usual = call in ALL or (sampler in REMEMBERING and call in OF_THESE)
        if usual:
            yield pytest.param(sampler, call, "tiny64")
        if usual or call in LENGTHS:
            yield pytest.param(sampler, call, "embedded", marks=pytest.mark.slow)


@pytest.mark.parametrize(("sampler", "call", "model"), cases())
def test_a_run_under_a_sampler(
    sampler: str, call: str, model: str, request: pytest.FixtureRequest, record_property: RecordProperty
) -> None:
    pair: Pair = request.getfixturevalue(model)
    before = copy.copy(modules.counts)
    error = relative_l2(ours(pair, CALLS[call], sampler), theirs(pair, CALLS[call], sampler))
    record_property("relative_l2", error)
    assert error <= WALKED_L2
    assert modules.counts == before  # another sampler is another table


@pytest.mark.slow  # as the other tests in bfloat16: its graphs take minutes to compile
@pytest.mark.parametrize("sampler", ["heun", "unipc", "er_sde"])
def test_in_bfloat16_a_run_is_as_near_as_the_reference(
    sampler: str, embedded: Pair, embedded_bfloat16: Pair, record_property: RecordProperty
) -> None:
    """Latents and the sampler's sums are float32 in both."""
    call = CALLS["9 steps, guided"]
    exact = theirs(embedded, call, sampler)
    usual = relative_l2(theirs(embedded_bfloat16, call, sampler), exact)
    error = relative_l2(ours(embedded_bfloat16, call, sampler), exact)
    record_property("bfloat16_ratio", error / usual)
    assert error <= BFLOAT16_RATIO * usual


@pytest.mark.parametrize("call", ["no guidance", "guidance", "guidance that ends"])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_run_with_layers_skipped(sampler: str, call: str, embedded: Pair) -> None:
    actual = ours(embedded, CALLS[call], sampler, skip=True)
    assert relative_l2(actual, theirs(embedded, CALLS[call], sampler, skip=True)) <= WALKED_L2
    assert relative_l2(actual, ours(embedded, CALLS[call], sampler)) > 1e-2


@pytest.mark.parametrize("cache", [FirstBlockCache(threshold=0.1), TaylorSeer()])
def test_a_step_cache_and_skipped_layers_do_not_go_together(
    cache: FirstBlockCache | TaylorSeer, embedded: Pair
) -> None:
    pipeline, call = embedded.ours, CALLS["no guidance"]
    request = request_of(embedded, call)
    captions = captions_of_request(request, pipeline.tokenizer, pipeline.text_encoder, pipeline.sources.limits)
    inputs = inputs_of_request(
        request, captions, pipeline.sources.specs.schedule, pipeline.transformer, pipeline.vae, others=skipping
    )
    object.__setattr__(inputs, "step_cache", cache)
    with pytest.raises(ValueError, match="cannot go with guidance that leaves out layers"):
        pipeline.denoising(inputs)


def test_a_branch_under_the_negative_prompt_needs_one(embedded: Pair) -> None:
    pipeline, request = embedded.ours, request_of(embedded, CALLS["no guidance"])
    captions = captions_of_request(request, pipeline.tokenizer, pipeline.text_encoder, pipeline.sources.limits)

    def under_the_negative(plan: Evaluations) -> Sequence[Branch]:
        return [Branch(caption="negative", scales=np.ones(plan.count, np.float32))]

    with pytest.raises(ValueError, match="ask for guidance_scale above 0"):
        inputs_of_request(
            request,
            captions,
            pipeline.sources.specs.schedule,
            pipeline.transformer,
            pipeline.vae,
            others=under_the_negative,
        )
