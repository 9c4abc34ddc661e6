"""Pictures under step caches: the uncached ones where nothing is left out, and elsewhere those of other people's code.

The engine is held against numpy around the reference's blocks (`tests.references.step_caches`), then against diffusers'
own hooks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from max_zimage import FirstBlockCache, TaylorSeer, ZImagePipeline
from max_zimage.compile.modules import counts
from max_zimage.device.devices import download, upload
from max_zimage.pipeline.max_step_cache import ZImageCacheState
from max_zimage.sampling.samplers import is_stochastic
from max_zimage.sampling.step_cache import StepCache, flags_of
from tests.recording import RecordProperty
from tests.references import step_caches as model
from tests.references.diffusers_caches import first_block, hooked, readable_blocks, taylorseer
from tests.references.diffusers_runs import Call, FloatArray, Pair, noise, packed, relative_l2
from tests.references.engine_runs import OpenTransformer, inputs_of, request_of
from tests.references.sampler_walk import SEED
from tests.tolerances import STAGES_L2, TRANSFORMER_L2

PROMPT = "a red star on a blue background"

CALLS = {
    "guided": Call(steps=20, guidance=4.0),
    "unguided": Call(steps=20, guidance=0.0),
    # Captions of unequal length and image padding: masks must not reach the state of another item.
    "two prompts": Call(prompts=(12, 40), negatives=(70, 9), steps=12, guidance=2.0, height=80, width=112),
    "guidance ends": Call(steps=16, guidance=4.0, cfg_truncation=0.5),
    "several pictures": Call(steps=12, copies=2),
}


def drawn(pipeline: ZImagePipeline, arguments: dict[str, Any], cache: StepCache | None) -> model.Flags | Any:
    """Latents after each step, packed, what was computed, and pixels."""
    history: list[FloatArray] = []

    def record(step: int, timestep: float, latents: Any) -> None:
        history.append(download(latents).copy())

    given = {name: value for name, value in arguments.items() if value is not None}
    request = request_for(pipeline, given, cache)
    output = pipeline.execute(inputs_of(pipeline, request), "np", record)
    return np.stack(history), output.computed, output.images


def request_for(pipeline: ZImagePipeline, arguments: dict[str, Any], cache: StepCache | None) -> Any:
    from max_zimage.request.request import GenerationRequest

    sources = pipeline.sources
    return GenerationRequest.create(
        limits=sources.limits, defaults=sources.defaults, step_cache=cache or "off", **arguments
    )


@pytest.fixture(scope="module")
def uncached(embedded: Pair) -> Callable[[str], Any]:
    """What `drawn` makes of a call without a cache, drawn once."""
    return functools.cache(lambda name: drawn(embedded.ours, embedded.arguments(CALLS[name]), None))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "cache", [FirstBlockCache(threshold=0.0), TaylorSeer(cache_interval=1), TaylorSeer(warmup_steps=10)], ids=str
)
def test_nothing_left_out_is_exactly_the_uncached_picture(
    embedded: Pair, uncached: Callable[[str], Any], name: str, cache: StepCache
) -> None:
    """And what comes before the first step that is left out is the uncached way."""
    plain, _, pixels = uncached(name)
    cached, computed, cached_pixels = drawn(embedded.ours, embedded.arguments(CALLS[name]), cache)
    positive = computed[:, 0]
    until = len(positive) if positive.all() else int(np.argmin(positive))
    np.testing.assert_array_equal(cached[:until], plain[:until])
    if positive.all():
        np.testing.assert_array_equal(cached_pixels, pixels)
    else:
        assert relative_l2(cached[until], plain[until]) > 1e-5


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("cache", [FirstBlockCache(threshold=1e-30), FirstBlockCache(warmup_steps=11)], ids=str)
def test_a_first_block_that_always_differs_changes_nothing(
    embedded: Pair,
    uncached: Callable[[str], Any],
    name: str,
    cache: FirstBlockCache,
    record_property: RecordProperty,
) -> None:
    """Items are computed one at a time, which rounds otherwise than all at once."""
    plain, everything, _ = uncached(name)
    cached, computed, _ = drawn(embedded.ours, embedded.arguments(CALLS[name]), cache)
    until = len(plain) if cache.warmup_steps == 0 else cache.warmup_steps
    np.testing.assert_array_equal(computed[:until], everything[:until])
    error = max(relative_l2(*latents) for latents in zip(cached[:until], plain[:until], strict=True))
    record_property("relative_l2", error)
    assert error <= STAGES_L2["step"]


MODELS: dict[str, list[StepCache]] = {
    "guided": [FirstBlockCache(), FirstBlockCache(threshold=1e9), TaylorSeer(warmup_steps=2, max_order=2)],
    "unguided": [FirstBlockCache(threshold=0.2, warmup_steps=5), TaylorSeer(cache_interval=60, warmup_steps=1)],
    "two prompts": [FirstBlockCache(threshold=0.2), TaylorSeer(cache_interval=3, warmup_steps=3, max_order=2)],
    "guidance ends": [FirstBlockCache(threshold=0.1), TaylorSeer(cache_interval=4, warmup_steps=3, max_order=2)],
    "several pictures": [FirstBlockCache(threshold=0.15)],
}


@pytest.mark.parametrize(("name", "cache"), [(name, cache) for name in MODELS for cache in MODELS[name]], ids=str)
def test_every_step_is_that_of_a_numpy_model(
    embedded: Pair, name: str, cache: StepCache, record_property: RecordProperty
) -> None:
    """The same steps of the same branches are computed, and the latents are the same after each."""
    call = CALLS[name]
    ours, computed, _ = drawn(embedded.ours, embedded.arguments(call), cache)
    theirs, expected = model.run(embedded, call, model.algorithm(cache))
    np.testing.assert_array_equal(computed, expected)
    assert 1 <= expected[:, 0].sum() < call.steps
    errors = [relative_l2(*latents) for latents in zip(ours, theirs, strict=True)]
    record_property("relative_l2", max(errors))
    assert max(errors) <= STAGES_L2["step"]


SAMPLED: list[tuple[str, StepCache, str]] = [
    ("guided", FirstBlockCache(threshold=0.1), "heun"),
    ("several pictures", FirstBlockCache(threshold=0.15), "dpmpp_sde"),
    ("two prompts", FirstBlockCache(threshold=0.2), "unipc"),
    ("two prompts", TaylorSeer(cache_interval=3, warmup_steps=3, max_order=2), "er_sde"),
    ("unguided", TaylorSeer(cache_interval=4, warmup_steps=2), "dpmpp_2m"),
]


@pytest.mark.parametrize(("name", "cache", "sampler"), SAMPLED, ids=str)
def test_caches_under_other_samplers(embedded: Pair, name: str, cache: StepCache, sampler: str) -> None:
    """An evaluation is left out, not the update behind it, nor its noise."""
    call = CALLS[name]
    arguments = {**embedded.arguments(call), "sampler": sampler}
    arguments |= {"seed": SEED} if is_stochastic(sampler) else {}
    ours, computed, _ = drawn(embedded.ours, arguments, cache)
    theirs, expected = model.run(embedded, call, model.algorithm(cache), sampler=sampler)
    np.testing.assert_array_equal(computed, expected)
    assert 1 <= expected[:, 0].sum() < len(expected)
    assert relative_l2(ours[-1], theirs[-1]) <= STAGES_L2["step"]


def test_branches_decide_for_themselves(embedded: Pair) -> None:
    """Of the two branches of one picture, and of two pictures."""
    _, computed, _ = drawn(embedded.ours, embedded.arguments(CALLS["two prompts"]), FirstBlockCache(threshold=0.1))
    columns = {tuple(column) for column in computed.T.tolist()}
    assert len(columns) > 1


def test_a_picture_is_the_same_alone_and_with_others(embedded: Pair) -> None:
    cache, arguments = FirstBlockCache(threshold=0.15), embedded.arguments(CALLS["several pictures"])
    both, computed, _ = drawn(embedded.ours, arguments, cache)
    for picture in range(2):
        alone = {**arguments, "num_images_per_prompt": 1, "latents": arguments["latents"][picture : picture + 1]}
        latents, flags, _ = drawn(embedded.ours, alone, cache)
        np.testing.assert_array_equal(latents[:, 0], both[:, picture])
        np.testing.assert_array_equal(flags, computed[:, [picture, picture + 2]])


def test_image_to_image_counts_the_steps_that_are_left(embedded: Pair) -> None:
    image = np.random.default_rng(3).integers(0, 256, (96, 128, 3), np.uint8)
    arguments: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 20, "guidance_scale": 2.0, "seed": 4}
    arguments |= {"image": image, "strength": 0.6}
    plain, _, pixels = drawn(embedded.ours, arguments, None)
    same, _, same_pixels = drawn(embedded.ours, arguments, FirstBlockCache(threshold=0.0))
    np.testing.assert_array_equal(same_pixels, pixels)
    assert len(same) == len(plain) == 12
    _, computed, _ = drawn(embedded.ours, arguments, TaylorSeer(cache_interval=3, warmup_steps=2))
    assert np.flatnonzero(computed[:, 0]).tolist() == [0, 1, 3, 6, 9]


@pytest.mark.parametrize("threshold", [0.06, 0.15])
def test_first_block_caching_is_that_of_diffusers(embedded: Pair, threshold: float) -> None:
    """With the block that diffusers asks. Its branches decide together, so guidance is off."""
    call, cache = CALLS["unguided"], FirstBlockCache(threshold=threshold, block="layers")
    ours, computed, _ = drawn(embedded.ours, embedded.arguments(call), cache)
    with readable_blocks(), hooked(embedded.theirs.transformer, first_block(threshold)) as counted:
        theirs = embedded.run_theirs(call).latents
    plain = embedded.run_theirs(call).latents
    assert computed[:, 0].sum() == len(counted) < call.steps
    assert relative_l2(ours[-1], packed(theirs[-1])) <= STAGES_L2["step"]
    assert relative_l2(ours[-1], packed(plain[-1])) > 100 * STAGES_L2["step"]


@pytest.mark.parametrize("order", [1, 2])
def test_taylorseer_is_that_of_diffusers(embedded: Pair, order: int) -> None:
    """Hooked to the final layer, whose output is the prediction, with all blocks left out in between."""
    call, cache = CALLS["guided"], TaylorSeer(cache_interval=4, warmup_steps=3, max_order=order)
    ours, computed, _ = drawn(embedded.ours, embedded.arguments(call), cache)
    with hooked(embedded.theirs.transformer, taylorseer(cache.cache_interval, cache.warmup_steps, order)) as counted:
        theirs = embedded.run_theirs(call).latents
    assert computed[:, 0].sum() == len(counted) < call.steps
    assert relative_l2(ours[-1], packed(theirs[-1])) <= STAGES_L2["step"]


@pytest.mark.parametrize(
    "cache", [FirstBlockCache(threshold=0.1), TaylorSeer(cache_interval=3, warmup_steps=2)], ids=str
)
def test_a_loop_of_ones_own_takes_the_same_steps(
    embedded: Pair, cache: StepCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAX's contract: state, and one step after the other with the caching policy of the flags."""
    pipeline, call = embedded.ours, Call(steps=9, guidance=0.0)
    config = pipeline.cache_config.model_copy(update=flags_of(cache))
    monkeypatch.setattr(pipeline, "cache_config", config)
    monkeypatch.setattr(ZImagePipeline, "default_residual_threshold", 0.1)
    assert pipeline.configured_cache == cache
    expected, computed, _ = drawn(pipeline, embedded.arguments(call), cache)
    assert not computed.all()
    transformer = OpenTransformer.of(pipeline, inputs_of(pipeline, request_of(embedded, call)))
    latents = packed(noise(embedded, call))
    state = pipeline.create_cache_state(1, latents.shape[1], pipeline.transformer.spec)
    assert state != ZImageCacheState()
    for step in range(call.steps):
        velocity = pipeline.run_denoising_step(
            step,
            state,
            pipeline.device,
            inputs=transformer.step(step, upload(latents, pipeline.device)),
        )
        latents = latents - transformer.inputs.schedule.deltas[step] * download(velocity)
        assert relative_l2(latents, expected[step]) <= TRANSFORMER_L2


def test_a_pipeline_that_is_configured_with_a_cache(embedded: Pair) -> None:
    """It compiles what the cache runs when it is loaded, and requests that say nothing use it."""
    cache = TaylorSeer(cache_interval=4, warmup_steps=3)
    pipeline = ZImagePipeline.from_pretrained(device="cpu", step_cache=cache)
    assert (pipeline.configured_cache, pipeline.sources.defaults.step_cache) == (cache, cache)
    compiled = dict(counts)
    arguments: dict[str, Any] = {"num_inference_steps": 12, "seed": 2, "output_type": "np"}
    by_default = pipeline(PROMPT, **arguments)
    assert dict(counts) == compiled
    np.testing.assert_array_equal(by_default, embedded.ours(PROMPT, step_cache=cache, **arguments))
    np.testing.assert_array_equal(pipeline(PROMPT, step_cache="off", **arguments), embedded.ours(PROMPT, **arguments))
    assert not np.array_equal(np.asarray(by_default), np.asarray(embedded.ours(PROMPT, **arguments)))
