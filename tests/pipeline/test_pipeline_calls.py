"""Calling the pipeline: a seed is a picture, a batch is its prompts, callbacks, forms of the result, and every error.

That the pictures are diffusers' is in test_parity_images.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from max.driver import Buffer
from max.experimental.nn import Module

from max_zimage import ZImagePipeline
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.errors import RequestError
from tests.references.diffusers_runs import Pair, packed
from tests.references.noises import initial_noise
from tests.references.scenes import recognize
from tests.tolerances import PIXEL_SHARE

PROMPT = "a red star on a blue background"


@pytest.fixture
def pipeline(embedded: Pair) -> ZImagePipeline:
    return embedded.ours


def same_pictures(first: Any, second: Any) -> bool:
    """Equal to within one level but for a value in a thousand: another batch sums in another order."""
    assert first.shape == second.shape
    return bool(np.mean(np.abs(first.astype(int) - second) <= 1) >= PIXEL_SHARE)


def test_a_seed_is_a_picture(pipeline: ZImagePipeline) -> None:
    first, again, other = (pipeline(PROMPT, seed=seed, num_inference_steps=2, output_type="np") for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert isinstance(first, np.ndarray)
    assert np.mean(np.abs(first.astype(int) - other) > 1) > 0.1


def test_picture_k_is_that_of_seed_plus_k(pipeline: ZImagePipeline) -> None:
    together = pipeline(PROMPT, seed=7, num_images_per_prompt=3, num_inference_steps=4, output_type="np")
    assert len(together) == 3
    for k, picture in enumerate(together):
        alone = pipeline(PROMPT, seed=7 + k, num_inference_steps=4, output_type="np")
        assert same_pictures(picture[None], alone)


def test_a_batch_is_its_prompts(pipeline: ZImagePipeline) -> None:
    """Captions of unequal padded length: a row must not see that there are others."""
    prompts, negatives = [PROMPT, "a green ring " * 20], ["a blue ring on black " * 12, ""]
    start = initial_noise(4, 2, 16, 80, 112)
    size: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 4, "output_type": "np"}
    together = pipeline(prompts, negative_prompt=negatives, latents=start, **size)
    for k in range(2):
        alone = pipeline(prompts[k], negative_prompt=negatives[k], latents=start[k : k + 1], **size)
        assert same_pictures(together[k : k + 1], alone)


def test_forms_of_the_result(pipeline: ZImagePipeline) -> None:
    arguments: dict[str, Any] = {"seed": 7, "height": 80, "width": 112, "num_inference_steps": 2}
    pixels = pipeline(PROMPT, output_type="np", **arguments)
    assert isinstance(pixels, np.ndarray)
    assert (pixels.shape, pixels.dtype) == ((1, 80, 112, 3), np.uint8)
    (picture,) = pipeline(PROMPT, **arguments)
    np.testing.assert_array_equal(np.asarray(picture), pixels[0])
    latents = pipeline(PROMPT, output_type="latent", **arguments)
    assert isinstance(latents, np.ndarray)
    assert (latents.shape, latents.dtype) == ((1, 16, 10, 14), np.float32)
    decoded = pipeline.decode_latents(Buffer.from_numpy(packed(latents)), np.empty(5), np.empty(7))
    np.testing.assert_array_equal(decoded, pixels)


def test_a_callback_sees_and_replaces_latents(pipeline: ZImagePipeline) -> None:
    """Latents of another run, put in after the second step, make the other run's picture."""
    seen: list[tuple[int, float, np.ndarray]] = []

    def record(caller: object, step: int, timestep: float, values: dict[str, Any]) -> None:
        assert caller is pipeline
        seen.append((step, timestep, values["latents"]))

    arguments: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 4, "output_type": "latent"}
    final = pipeline(PROMPT, seed=7, callback_on_step_end=record, **arguments)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    np.testing.assert_allclose([timestep for _, timestep, _ in seen], [1000, 900, 750, 500], rtol=1e-6)
    np.testing.assert_array_equal(seen[-1][2], final)

    def replace_at(index: int) -> Callable[..., dict[str, Any] | None]:
        return lambda caller, step, timestep, values: {"latents": seen[step][2]} if step == index else None

    for index in (1, 3):
        replaced = pipeline(PROMPT, seed=8, callback_on_step_end=replace_at(index), **arguments)
        np.testing.assert_array_equal(replaced, final)
    with pytest.raises(ValueError, match=r"the callback must return latents of shape \[1, 16, 10, 14\], got \[2\]"):
        pipeline(PROMPT, callback_on_step_end=lambda *_: {"latents": np.zeros(2)}, **arguments)


def test_the_embedded_model_draws_what_is_asked(pipeline: ZImagePipeline) -> None:
    """At the checkpoint's own defaults, as the first command of the README draws it."""
    found = [recognize(np.asarray(pipeline(PROMPT, seed=seed, output_type="np"))[0]) for seed in (1, 2, 3, 4)]
    assert found.count(("red", "star", "blue")) >= 3, found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 100}, "height must be a multiple of 16, got 100; the nearest are 96 and 112"),
        ({"width": 1000}, "width must be a multiple of 16, got 1000; the nearest are 992 and 1008"),
        ({"height": 8208}, "height must be from 16 to 8192, got 8208"),
        ({"num_inference_steps": 0}, "num_inference_steps must be from 1 to 1000, got 0"),
        ({"num_inference_steps": -3}, "num_inference_steps must be from 1 to 1000, got -3"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": "red " * 600}, r"the prompt has \d+ tokens, at most 512 are allowed; shorten it or raise"),
        ({"negative_prompt": "red " * 600}, r"the negative prompt has \d+ tokens, at most 512 are allowed"),
        ({"prompt": "red " * 2000, "max_sequence_length": 1024}, r"at most 1024 are allowed; shorten it$"),
        ({"output_type": "jpeg"}, "output_type must be one of pil, np, latent, got 'jpeg'"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a finite number of at least 0, got -1.0"),
    ],
)
def test_bad_requests(arguments: dict[str, Any], message: str, pipeline: ZImagePipeline) -> None:
    with pytest.raises(RequestError, match=message):
        pipeline(**{"prompt": PROMPT, **arguments})


def test_bad_devices_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("max_zimage.device.devices.accelerator_count", lambda: 0)
    with pytest.raises(ValueError, match='device must be "auto", "cpu", "gpu" or "gpu:N", got \'tpu\''):
        ZImagePipeline.from_pretrained(device="tpu")
    with pytest.raises(ValueError, match="device 'gpu' was asked for, and no accelerator is available here"):
        ZImagePipeline.from_pretrained(device="gpu")
    with pytest.raises(ValueError, match="dtype must be \"auto\", 'float32' or 'bfloat16', got 'float16'"):
        ZImagePipeline.from_pretrained(device="cpu", dtype="float16")


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*arguments: object) -> None:
        raise AssertionError("weights were loaded or a graph was traced")

    monkeypatch.setattr("max_zimage.pipeline.load_components.available_memory", lambda: 2**20)
    monkeypatch.setattr("max_zimage.components.base.load", loaded)
    monkeypatch.setattr(Module, "trace", loaded)
    with pytest.raises(NotEnoughMemoryError, match=r"weights need 43 MiB, 1 MiB are available; free"):
        ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
