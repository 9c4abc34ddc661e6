"""Image-to-image against diffusers' own pipeline, with the same noise; and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.z_image import pipeline_z_image_img2img as reference_module
from PIL import Image

from max_zimage.errors import RequestError
from max_zimage.request.start_image import digest
from max_zimage.sampling.schedule import first_step
from tests.references.diffusers_runs import Pair
from tests.references.noises import initial_noise, posterior_noise
from tests.serving.test_step_scheduler import Worker
from tests.tolerances import PIXEL_SHARE

SEED = 17
PROMPT = "a green circle on a black background"


def start(height: int = 128, width: int = 128) -> np.ndarray:
    """A red square on blue."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:] = (30, 60, 220)
    picture[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = (220, 30, 30)
    return picture


def theirs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, image: np.ndarray, *, sample: bool = True, **arguments: Any
) -> np.ndarray:
    """Draw with diffusers, which gets our noise wherever it draws some."""
    height, width, _ = image.shape
    noise = torch.from_numpy(initial_noise(SEED, 1, 16, height, width))
    chosen = torch.from_numpy(posterior_noise(SEED, 1, 16, height, width)) * float(sample)
    monkeypatch.setattr(reference_module, "randn_tensor", lambda *_, **__: noise)
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean + self.std * chosen
    )
    pipeline = ZImageImg2ImgPipeline(**pair.theirs.components)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.set_shift(pipeline.scheduler.config.shift)
    made = pipeline(
        PROMPT, image=Image.fromarray(image), height=height, width=width, output_type="np", **arguments
    ).images
    return np.asarray(np.round(made * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("strength", "steps", "guidance", "size"),
    [(0.6, 8, 2.0, (128, 128)), (1.0, 4, 2.0, (128, 128)), (0.05, 6, 0.0, (128, 128)), (0.5, 5, 2.0, (80, 112))],
    ids=str,
)
def test_pictures_are_those_of_diffusers(
    strength: float, steps: int, guidance: float, size: tuple[int, int], embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {"strength": strength, "num_inference_steps": steps, "guidance_scale": guidance}
    ours = embedded.ours(PROMPT, image=start(*size), seed=SEED, output_type="np", **common)
    expected = theirs(embedded, monkeypatch, start(*size), **common)
    assert np.mean(np.abs(np.asarray(ours).astype(int) - expected) <= 1) >= PIXEL_SHARE


def test_with_noise_in_place_of_a_seed_the_image_is_the_posteriors_mode(
    embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {"strength": 0.4, "num_inference_steps": 4, "guidance_scale": 0.0}
    noise = initial_noise(SEED, 1, 16, 128, 128)
    ours = embedded.ours(PROMPT, image=Image.fromarray(start()), latents=noise, output_type="np", **common)
    expected = theirs(embedded, monkeypatch, start(), sample=False, **common)
    assert np.mean(np.abs(np.asarray(ours).astype(int) - expected) <= 1) >= PIXEL_SHARE


def test_the_strength_is_how_far_it_goes(embedded: Pair) -> None:
    def distance(strength: float) -> float:
        made = embedded.ours(
            PROMPT,
            image=start(),
            strength=strength,
            num_inference_steps=8,
            guidance_scale=0.0,  # guidance pulls towards the prompt even in the one step of the smallest strength
            seed=1,
            output_type="np",
        )
        return float(np.mean(np.abs(np.asarray(made)[0].astype(int) - start())))

    distances = [distance(strength) for strength in (0.1, 0.5, 0.9)]
    assert distances == sorted(distances)
    assert distances[0] < 20  # the autoencoder's own loss and one small step
    assert distances[2] > 40


def test_each_picture_is_what_its_seed_makes_alone(embedded: Pair) -> None:
    common: dict[str, Any] = {"image": start(), "num_inference_steps": 4, "guidance_scale": 0.0, "output_type": "np"}
    both = np.asarray(embedded.ours(PROMPT, seed=5, num_images_per_prompt=2, **common))
    second = np.asarray(embedded.ours(PROMPT, seed=6, **common))
    assert np.mean(np.abs(both[1].astype(int) - second[0]) <= 1) > 0.999
    assert np.mean(np.abs(both[0].astype(int) - second[0]) <= 1) < 0.98


def test_first_step() -> None:
    assert [first_step(8, strength) for strength in (1.0, 0.6, 0.5, 0.01)] == [0, 3, 4, 7]
    assert first_step(1, 0.1) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.5}, "strength is given without an image, got 0.5"),
        ({"image": start(), "strength": 0.0}, "strength must be a finite number above 0, got 0.0"),
        ({"image": start(), "strength": 1.5}, "strength must be at most 1, got 1.5"),
        (
            {"image": start(100, 128)},
            "image: its sides must be multiples of 16, it has 128x100 pixels; the nearest size that fits is 128x96; "
            "resize it, or set resize=True",
        ),
        (
            {"image": start(), "height": 256},
            "image: it has 128x128 pixels and the request asks for 128x256; ask for the image's size, resize it",
        ),
        ({"resize": True}, "resize is set without an image; give the image too, or leave it out"),
        ({"image": start(), "resize": "yes"}, r"resize must be true or false, got 'yes'"),
        (
            {"image": start().astype(np.float32)},
            r"image must be a PIL image or a uint8 array \[height, width, 3\], got f",
        ),
        ({"image": "star.png"}, "image must be a PIL image or a uint8 array .*, got str"),
        ({"image": Image.new("RGBA", (128, 128))}, "image has transparent pixels, which have no colour"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(arguments: dict[str, Any], message: str, embedded: Pair) -> None:
    with pytest.raises(RequestError, match=message):
        embedded.ours(PROMPT, **arguments)


def test_a_server_draws_the_same(embedded: Pair) -> None:
    worker = Worker(embedded.ours)
    asked = worker.ask(PROMPT, seed=SEED, steps=8, strength=0.6, image=start())
    plain = worker.ask(PROMPT, seed=SEED, steps=8)
    worker.finish()
    expected = embedded.ours(
        PROMPT, image=start(), strength=0.6, seed=SEED, num_inference_steps=8, guidance_scale=2.0, output_type="np"
    )
    np.testing.assert_array_equal(worker.pictures(asked)[0], np.asarray(expected)[0])
    assert [step for step, _ in worker.steps(asked)] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in worker.steps(plain)] == [*range(9)]


def test_the_digest_is_of_pixels_and_size() -> None:
    picture = np.arange(96 * 64 * 3).astype(np.uint8).reshape(96, 64, 3)
    assert digest(picture) == digest(np.asfortranarray(picture))
    assert digest(picture) != digest(picture.reshape(64, 96, 3))
    assert digest(picture) != digest(picture[::-1])
