"""Inpainting against diffusers' own pipeline with the same noise; soft masks and what is pasted against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.z_image import pipeline_z_image_inpaint as reference_module
from PIL import Image

from max_zimage.device.devices import download, upload
from max_zimage.pipeline.inpainting import Paste, latent_mask
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.names import SAMPLERS
from tests.references.diffusers_runs import Pair, relative_l2
from tests.references.engine_runs import inputs_of
from tests.references.noises import initial_noise, posterior_noise
from tests.tolerances import BFLOAT16_RATIO

SEED = 17
PROMPT = "a green circle on a black background"


def picture(height: int = 128, width: int = 128) -> np.ndarray:
    """A red square on blue."""
    made = np.zeros((height, width, 3), np.uint8)
    made[:] = (30, 60, 220)
    made[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = (220, 30, 30)
    return made


def ramp(height: int = 128, width: int = 128) -> np.ndarray:
    """Black on the left to white on the right, with every level between."""
    return np.broadcast_to(np.linspace(0, 255, width).round().astype(np.uint8), (height, width)).copy()


def square(height: int = 128, width: int = 128) -> np.ndarray:
    """White, off the grid of latents, on black."""
    made = np.zeros((height, width), np.uint8)
    made[height // 4 + 3 : height - 9, width // 4 - 5 : width // 2 + 3] = 255
    return made


def theirs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, image: np.ndarray, mask: np.ndarray, **arguments: Any
) -> np.ndarray:
    """Latents of diffusers, which gets our noise wherever it draws some."""
    height, width, _ = image.shape
    noise = torch.from_numpy(initial_noise(SEED, 1, 16, height, width))
    chosen = torch.from_numpy(posterior_noise(SEED, 1, 16, height, width))
    monkeypatch.setattr(reference_module, "randn_tensor", lambda *_, **__: noise)
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean + self.std * chosen
    )
    pipeline = ZImageInpaintPipeline(**pair.theirs.components)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.set_shift(pipeline.scheduler.config.shift)
    pictures = {"image": Image.fromarray(image), "mask_image": Image.fromarray(mask)}
    return np.asarray(
        pipeline(PROMPT, **pictures, height=height, width=width, output_type="latent", **arguments).images
    )


CASES: dict[str, tuple[dict[str, Any], tuple[int, int], Any]] = {
    "pure noise, guided": ({"num_inference_steps": 4, "guidance_scale": 2.0, "strength": 1.0}, (128, 128), square),
    "half way": ({"num_inference_steps": 9, "guidance_scale": 0.0, "strength": 0.5}, (128, 128), square),
    "levels around the half": ({"num_inference_steps": 3, "guidance_scale": 0.0, "strength": 1.0}, (80, 112), ramp),
    "one step": ({"num_inference_steps": 9, "guidance_scale": 2.0, "strength": 0.05}, (128, 128), square),
}


@pytest.mark.parametrize("case", CASES)
def test_latents_are_those_of_diffusers(
    case: str, embedded: Pair, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    arguments, size, shape = CASES[case]
    image, mask = picture(*size), shape(*size)
    ours = embedded.ours(PROMPT, image=image, mask_image=mask, seed=SEED, output_type="latent", **arguments)
    expected = theirs(embedded, monkeypatch, image, mask, **arguments)
    error = relative_l2(np.asarray(ours), expected)
    record_property("relative_l2", error)
    assert error < 5e-6
    kept = np.broadcast_to(latent_mask(mask, 8, soft=False) == 0, expected.shape)
    alone = embedded.ours.vae.encode(*encoding(embedded, image)).to_numpy()
    np.testing.assert_array_equal(np.asarray(ours)[kept], alone[kept])  # to the bit


@pytest.mark.slow  # as the other tests in bfloat16: its graphs take minutes to compile
@pytest.mark.parametrize("case", ["pure noise, guided", "half way"])
def test_in_bfloat16_it_is_as_near_as_the_reference(
    case: str,
    embedded: Pair,
    embedded_bfloat16: Pair,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """And keeps what its own encoder makes of the image, to the bit."""
    arguments, size, shape = CASES[case]
    image, mask = picture(*size), shape(*size)
    exact, rounded = (theirs(pair, monkeypatch, image, mask, **arguments) for pair in (embedded, embedded_bfloat16))
    asked = {"image": image, "mask_image": mask, "seed": SEED, "output_type": "latent", **arguments}
    ours = np.asarray(embedded_bfloat16.ours(PROMPT, **asked))
    usual, error = relative_l2(rounded, exact), relative_l2(ours, exact)
    record_property("bfloat16_ratio", error / usual)
    assert error <= BFLOAT16_RATIO * usual
    kept = np.broadcast_to(latent_mask(mask, 8, soft=False) == 0, exact.shape)
    alone = embedded_bfloat16.ours.vae.encode(*encoding(embedded_bfloat16, image)).to_numpy()
    np.testing.assert_array_equal(ours[kept], alone[kept])


def encoding(pair: Pair, image: np.ndarray) -> tuple[Any, Any]:
    """The arguments of the encoder that the request's seed makes of its image."""
    height, width, _ = image.shape
    device = pair.ours.vae.device
    return upload(image[None], device), upload(posterior_noise(SEED, 1, 16, height, width), device)


def drawn(pair: Pair, **arguments: Any) -> np.ndarray:
    """A picture or its latents."""
    common: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 0.0, "seed": SEED, "output_type": "latent"}
    return np.asarray(pair.ours(PROMPT, **common | arguments))


def test_all_white_is_image_to_image_and_all_black_the_image(embedded: Pair) -> None:
    image, white = picture(), np.full((128, 128), 255, np.uint8)
    plain = drawn(embedded, image=image, strength=0.6)
    np.testing.assert_array_equal(drawn(embedded, image=image, strength=0.6, mask_image=white), plain)
    kept = drawn(embedded, image=image, mask_image=np.zeros_like(white), strength=0.6)
    np.testing.assert_array_equal(kept, embedded.ours.vae.encode(*encoding(embedded, image)).to_numpy())


def test_the_strength_is_1_unless_it_is_given(embedded: Pair) -> None:
    image, mask = picture(), square()
    np.testing.assert_array_equal(
        drawn(embedded, image=image, mask_image=mask), drawn(embedded, image=image, mask_image=mask, strength=1.0)
    )


def test_masks_of_all_forms_are_one(embedded: Pair) -> None:
    image, mask = picture(), square()
    expected = drawn(embedded, image=image, mask_image=mask)
    forms = [mask > 0, Image.fromarray(mask), Image.fromarray(mask).convert("RGB"), Image.fromarray(mask).convert("1")]
    for form in forms:
        np.testing.assert_array_equal(drawn(embedded, image=image, mask_image=form), expected)


def test_a_soft_mask_says_how_long_a_latent_is_kept(embedded: Pair) -> None:
    """Step by step: a run whose latents are put back by a callback, in numpy."""
    image, mask = picture(), ramp()
    mask[:, :8] = 0
    arguments: dict[str, Any] = {"strength": 0.8, "num_inference_steps": 6}
    ours = drawn(embedded, image=image, mask_image=mask, soft_mask=True, **arguments)
    clean = embedded.ours.vae.encode(*encoding(embedded, image)).to_numpy()
    noise, share = initial_noise(SEED, 1, 16, 128, 128), mask.reshape(16, 8, 16, 8).mean((1, 3)) / 255
    request = GenerationRequest.create(
        limits=embedded.ours.sources.limits,
        defaults=embedded.ours.sources.defaults,
        prompt=PROMPT,
        image=image,
        **arguments,
    )
    sigmas = request.schedule(embedded.ours.sources.specs.schedule).sigmas
    kept_steps = []

    def put_back(_: Any, step: int, __: float, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        level = np.float32(sigmas[step + 1])
        is_new = (share > 0) & (share >= level / sigmas[0])
        kept_steps.append(int(is_new[0].sum()))
        return {"latents": np.where(is_new, tensors["latents"], level * noise + (1 - level) * clean)}

    restated = drawn(embedded, image=image, callback_on_step_end=put_back, **arguments)
    assert relative_l2(ours, restated) < 1e-6
    assert kept_steps == sorted(kept_steps)
    assert kept_steps[0] < kept_steps[-1] == 15  # of 16 columns: the first is black
    np.testing.assert_array_equal(ours[..., 0], clean[..., 0])


def test_a_soft_mask_of_black_and_white_is_a_hard_one(embedded: Pair) -> None:
    image, mask = picture(), np.repeat(np.repeat(square(16, 16), 8, 0), 8, 1)
    hard, soft = (drawn(embedded, image=image, mask_image=mask, soft_mask=soft) for soft in (False, True))
    np.testing.assert_array_equal(soft, hard)


def test_the_images_own_pixels_come_back(embedded: Pair) -> None:
    image, mask = picture(), ramp()
    arguments: dict[str, Any] = {"image": image, "mask_image": mask, "output_type": "np"}
    plain, pasted = (drawn(embedded, composite=composite, **arguments)[0] for composite in (False, True))
    share = mask[..., None] / 255.0
    np.testing.assert_array_equal(pasted, np.rint(share * plain + (1 - share) * image))
    np.testing.assert_array_equal(pasted[:, 0], image[:, 0])
    assert np.abs(plain[:, 0].astype(int) - image[:, 0]).max() > 0


@pytest.mark.parametrize("kind", ["blend", "exact"])
def test_they_come_back_in_tiles_too(kind: str, embedded: Pair) -> None:
    image, mask = picture(), ramp()
    arguments: dict[str, Any] = {"image": image, "mask_image": mask, "output_type": "np", "num_inference_steps": 2}
    arguments |= {"vae_tiling": kind, "vae_tile_size": 64} | ({"vae_tile_overlap": 16} if kind == "blend" else {})
    plain, pasted = (drawn(embedded, composite=composite, **arguments)[0] for composite in (False, True))
    share = mask[..., None] / 255.0
    np.testing.assert_array_equal(pasted, np.rint(share * plain + (1 - share) * image))


def test_pasting_rounds_to_the_nearest_level() -> None:
    image, new = np.full((1, 256, 3), 10, np.uint8), np.full((1, 256, 3), 201, np.uint8)
    mask = np.arange(256, dtype=np.uint8)[None]
    expected = np.rint(mask[..., None] / 255 * new.astype(float) + (1 - mask[..., None] / 255) * image)
    np.testing.assert_array_equal(Paste(image=image, mask=mask)(new), expected)


def test_outpainting_is_a_mask_around_a_larger_image(embedded: Pair) -> None:
    image = picture(96, 80)
    ours = drawn(embedded, image=image, outpaint=(16, 32, 32, 0))
    larger = np.pad(image, ((32, 0), (16, 32), (0, 0)), mode="edge")
    mask = np.full((128, 128), 255, np.uint8)
    mask[32:, 16:96] = 0
    assert ours.shape[2:] == (16, 16)
    np.testing.assert_array_equal(ours, drawn(embedded, image=larger, mask_image=mask))
    inner = square(96, 80)
    mask[32:, 16:96] = inner
    both = drawn(embedded, image=image, outpaint=(16, 32, 32, 0), mask_image=inner)
    np.testing.assert_array_equal(both, drawn(embedded, image=larger, mask_image=mask))


def test_each_picture_is_what_its_seed_makes_alone(embedded: Pair) -> None:
    both = drawn(embedded, image=picture(), mask_image=square(), num_images_per_prompt=2)
    second = drawn(embedded, image=picture(), mask_image=square(), seed=SEED + 1)
    assert relative_l2(both[1:], second) < 5e-6
    assert relative_l2(both[:1], second) > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_keeps_what_the_mask_keeps(sampler: str, embedded: Pair) -> None:
    image, mask = picture(), square()
    made = drawn(embedded, image=image, mask_image=mask, sampler=sampler, strength=0.5)
    kept = np.broadcast_to(latent_mask(mask, 8, soft=False) == 0, made.shape)
    np.testing.assert_array_equal(made[kept], embedded.ours.vae.encode(*encoding(embedded, image)).to_numpy()[kept])
    assert np.isfinite(made).all()


@pytest.mark.parametrize("cache", ["first_block:threshold=0.3", "taylorseer:cache_interval=2,warmup_steps=2"])
def test_steps_that_are_left_out_keep_it_too(cache: str, embedded: Pair) -> None:
    image, mask = picture(), square()
    made = drawn(embedded, image=image, mask_image=mask, step_cache=cache, num_inference_steps=8)
    kept = np.broadcast_to(latent_mask(mask, 8, soft=False) == 0, made.shape)
    np.testing.assert_array_equal(made[kept], embedded.ours.vae.encode(*encoding(embedded, image)).to_numpy()[kept])
    plain = drawn(embedded, image=image, mask_image=mask, num_inference_steps=8)
    assert 0 < relative_l2(made, plain) < 0.5


def test_pictures_that_go_on_alone_keep_their_own(embedded: Pair) -> None:
    """As when a request that shares a batch is cancelled."""
    arguments: dict[str, Any] = {"prompt": PROMPT, "image": picture(), "mask_image": square(), "seed": SEED}
    sources = embedded.ours.sources
    arguments |= {"num_inference_steps": 4, "guidance_scale": 0.0, "num_images_per_prompt": 2}
    request = GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **arguments)
    run = embedded.ours.denoising(inputs_of(embedded.ours, request))
    run.advance()
    run.keep([1])
    run.run()
    whole = embedded.ours.denoising(inputs_of(embedded.ours, request))
    whole.run()
    assert relative_l2(download(run.latents), download(whole.latents)[1:]) < 5e-6
