"""On an accelerator: the same numbers as on the CPU and in the reference, in both dtypes, cached and served.

Everything here is left out where there is no accelerator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from max.driver import accelerator_count

from max_zimage import FirstBlockCache, TaylorSeer, ZImagePipeline
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.sampling.step_cache import StepCache
from tests.recording import RecordProperty
from tests.references.diffusers_runs import (
    Call,
    Pair,
    load_reference,
    noise,
    packed,
    reference_features,
    reference_prediction,
    relative_l2,
)
from tests.references.engine_runs import OpenTransformer, inputs_of, request_of
from tests.references.scenes import recognize
from tests.tolerances import BFLOAT16_RATIO, GPU_FLOAT32_L2

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(accelerator_count() == 0, reason="there is no accelerator here"),
]

CALLS = {
    "square": Call(),
    "padding": Call(prompts=(33,), height=80, width=112),
    "unequal captions": Call(prompts=(12, 75), negatives=(40, 9)),
    "no guidance": Call(prompts=(12, 40), guidance=0.0),
    # Fewer rows than a tile of a matrix product on a GPU has, in the captions' layers and in the image's.
    "short caption": Call(prompts=(12,), guidance=0.0),
    "small": Call(prompts=(33,), height=64, width=64, guidance=0.0),
}


@pytest.fixture(scope="module")
def float32() -> Pair:
    return Pair(ZImagePipeline.from_pretrained(device="gpu", dtype="float32"), load_reference(EMBEDDED))


@pytest.fixture(scope="module")
def bfloat16() -> Pair:
    pipeline = ZImagePipeline.from_pretrained(device="gpu", dtype="bfloat16")
    return Pair(pipeline, load_reference(EMBEDDED, torch.bfloat16))


def test_bfloat16_is_what_a_gpu_gets(bfloat16: Pair) -> None:
    assert set(ZImagePipeline.prepare(device="gpu").sources.dtypes.values()) == {"bfloat16"}
    assert not bfloat16.ours.device.is_host


@pytest.mark.parametrize("name", CALLS)
def test_transformer_in_float32(name: str, float32: Pair, record_property: RecordProperty) -> None:
    call = CALLS[name]
    branches = reference_features(float32, call)
    inputs = inputs_of(float32.ours, request_of(float32, call, branches))
    features = [item for branch in branches for item in branch]
    latents = noise(float32, call)
    repeated = np.concatenate([latents] * (len(features) // len(latents)))
    expected = packed(reference_prediction(float32, repeated, float(inputs.schedule.timesteps[2]), features))
    ours = OpenTransformer.of(float32.ours, inputs).predict(latents, 2)
    record_property("relative_l2", relative_l2(ours, expected))
    assert relative_l2(ours, expected) <= GPU_FLOAT32_L2


@pytest.mark.parametrize("name", CALLS)
def test_pictures_in_float32(name: str, float32: Pair, record_property: RecordProperty) -> None:
    """From the prompt on: text encoder, steps and decoder."""
    ours, theirs = (run(CALLS[name]).pixels.astype(int) for run in (float32.run_ours, float32.run_theirs))
    near = float(np.mean(np.abs(ours - theirs) <= 2))
    record_property("within_2", near)
    assert near >= 0.99


@pytest.mark.parametrize("name", CALLS)
def test_final_latents_in_bfloat16(name: str, float32: Pair, bfloat16: Pair, record_property: RecordProperty) -> None:
    """At most twice what torch loses on the CPU in the same dtype."""
    exact = float32.run_theirs(CALLS[name]).latents[-1]
    theirs = bfloat16.run_theirs(CALLS[name]).latents[-1]
    ours = bfloat16.run_ours(CALLS[name]).latents[-1]
    ratio = relative_l2(ours, exact) / relative_l2(theirs, exact)
    record_property("bfloat16_ratio", ratio)
    assert ratio <= BFLOAT16_RATIO


def test_weights_in_eight_bits(bfloat16: Pair, record_property: RecordProperty) -> None:
    quantize = "transformer=int8,text_encoder=int8"
    pipeline = ZImagePipeline.from_pretrained(device="gpu", dtype="bfloat16", quantize=quantize)
    asked: dict[str, Any] = {"guidance_scale": 2.0, "seed": 7, "output_type": "np"}
    drawn: list[Any] = [each("a red star on a blue background", **asked) for each in (pipeline, bfloat16.ours)]
    narrow, whole = (each[0] for each in drawn)
    error = float(np.mean((narrow.astype(float) - whole.astype(float)) ** 2))
    record_property("psnr_db", 10 * np.log10(255**2 / error))
    assert 0 < error < 65  # 30 dB
    assert recognize(narrow)[0] == "red"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_shows_what_was_asked_for(dtype: str, request: pytest.FixtureRequest) -> None:
    pipeline: ZImagePipeline = request.getfixturevalue(dtype).ours
    drawn: Any = pipeline("a red star on a blue background", guidance_scale=2.0, seed=7, output_type="np")
    colour, _, background = recognize(drawn[0])
    assert (colour, background) == ("red", "blue")


@pytest.mark.parametrize("cache", [FirstBlockCache(threshold=1e-30), TaylorSeer(cache_interval=1)], ids=str)
def test_a_step_cache_that_leaves_nothing_out_changes_nothing(cache: StepCache, float32: Pair) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 12, "guidance_scale": 2.0, "seed": 3, "output_type": "latent"}
    plain, cached = (np.asarray(float32.ours("a red star", step_cache=used, **asked)) for used in ("off", cache))
    assert relative_l2(cached, plain) <= GPU_FLOAT32_L2


@pytest.mark.parametrize("cache", ["first_block:threshold=0.15", "taylorseer:cache_interval=3,warmup_steps=3"])
def test_step_caches_leave_out_what_they_leave_out_on_the_cpu(cache: str, embedded: Pair, float32: Pair) -> None:
    """Decided on the device; pictures differ by no more than the devices do."""
    asked: dict[str, Any] = {"num_inference_steps": 16, "guidance_scale": 2.0, "seed": 3, "output_type": "np"}
    here, there = (np.asarray(pair.ours("a red star", step_cache=cache, **asked)) for pair in (embedded, float32))
    assert np.mean(np.abs(here.astype(int) - there) <= 2) > 0.99
