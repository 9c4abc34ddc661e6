"""Seeds of other programs, variations of a picture, and runs in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.errors import RequestError
from max_zimage.sampling import samplers
from tests.references.diffusers_runs import Pair, relative_l2
from tests.tolerances import ENCODER_L2, SAMPLED_L2

PROMPT = "a red star on a blue background"
ASKED: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 4, "guidance_scale": 2.0}


def latents_of(pipeline: ZImagePipeline, **more: Any) -> np.ndarray:
    return np.asarray(pipeline(PROMPT, **ASKED | {"output_type": "latent"} | more))


def of_diffusers(pair: Pair, **more: Any) -> np.ndarray:
    pair.theirs.scheduler.set_shift(pair.theirs.scheduler.config.shift)
    return np.asarray(pair.theirs(PROMPT, **ASKED | {"output_type": "latent"} | more).images)


def test_a_seed_of_diffusers_repeats(embedded: Pair) -> None:
    """By name, and by its generator: one for all pictures, or one for each."""
    expected = of_diffusers(embedded, generator=torch.Generator().manual_seed(42))
    assert relative_l2(latents_of(embedded.ours, noise="torch", seed=42), expected) <= SAMPLED_L2
    mine = latents_of(embedded.ours, generator=torch.Generator().manual_seed(42))
    assert relative_l2(mine, expected) <= SAMPLED_L2
    many: dict[str, Any] = {"num_images_per_prompt": 2}
    for generator in (
        lambda: torch.Generator().manual_seed(5),
        lambda: [torch.Generator().manual_seed(seed) for seed in (8, 9)],
    ):
        theirs = of_diffusers(embedded, generator=generator(), **many)
        assert relative_l2(latents_of(embedded.ours, generator=generator(), **many), theirs) <= SAMPLED_L2
    by_seed = latents_of(embedded.ours, noise="torch", seed=8, **many)
    assert relative_l2(by_seed, theirs) <= SAMPLED_L2  # picture k has seed + k


def test_image_to_image_of_diffusers_repeats(embedded: Pair) -> None:
    rows, columns = np.mgrid[0:80, 0:112]
    picture = Image.fromarray(np.stack([rows * 3, columns * 2, rows + columns], axis=-1).astype(np.uint8))
    pipeline = ZImageImg2ImgPipeline(**embedded.theirs.components)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.set_shift(pipeline.scheduler.config.shift)
    asked: dict[str, Any] = {"num_inference_steps": 6, "strength": 0.5, "guidance_scale": 2.0, "output_type": "latent"}
    generator = torch.Generator().manual_seed(3)
    expected = np.asarray(pipeline(PROMPT, image=picture, height=80, width=112, generator=generator, **asked).images)
    ours = np.asarray(embedded.ours(PROMPT, image=picture, noise="torch", seed=3, **asked))
    assert relative_l2(ours, expected) <= 5 * ENCODER_L2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"generator": 42},
            "generator must be a torch.Generator or a list of them, got int; a number is given as seed",
        ),
        ({"generator": [torch.Generator()] * 3}, "one for each of 1 pictures, got 3"),
        ({"seed": 3}, "generator and seed exclude each other"),
        ({"latents": np.zeros((1, 16, 10, 14), np.float32)}, "generator and latents exclude each other"),
        ({"image": Image.new("RGB", (112, 80)), "strength": 0.5}, 'as seed with noise="torch"'),
    ],
)
def test_generators_that_do_not_do(more: dict[str, Any], says: str, embedded: Pair) -> None:
    with pytest.raises(RequestError, match=says):
        latents_of(embedded.ours, **{"generator": torch.Generator()} | more)


def test_variations_lie_between_two_pictures(embedded: Pair) -> None:
    one, other = latents_of(embedded.ours, seed=1), latents_of(embedded.ours, seed=2)
    given: dict[str, Any] = {"seed": 1, "variation_seed": 2}
    np.testing.assert_array_equal(latents_of(embedded.ours, seed=1), one)
    assert relative_l2(latents_of(embedded.ours, variation_strength=1.0, **given), other) <= SAMPLED_L2
    near = latents_of(embedded.ours, variation_strength=0.05, **given)
    assert 1e-4 < relative_l2(near, one) < relative_l2(other, one) / 2


@pytest.mark.parametrize("sampler", samplers.forgetful())
def test_a_run_in_parts_is_the_whole_one(sampler: str, embedded: Pair) -> None:
    """To the bit, with guidance that ends in one of the parts."""
    asked: dict[str, Any] = {"num_inference_steps": 7, "sampler": sampler, "guidance_interval": (0.0, 0.6)}
    asked |= {"sigma_shape": "karras"}
    seed = {"seed": 4} if samplers.is_stochastic(sampler) else {}
    whole = latents_of(embedded.ours, **asked | {"seed": 4})
    for cut in (0.3, 0.5):
        first = latents_of(embedded.ours, denoising_end=cut, **asked | {"seed": 4})
        second = latents_of(embedded.ours, denoising_start=cut, latents=first, **asked | seed)
        np.testing.assert_array_equal(second, whole)
        assert relative_l2(first, whole) > 0.05


def test_a_part_of_three_and_a_scale_by_step(embedded: Pair) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": [3.0, 2.0, 0.0, 1.0, 4.0, 0.5]}
    asked |= {"slg": True, "slg_start": 0.3, "slg_stop": 0.8}
    whole = latents_of(embedded.ours, **asked | {"seed": 4})
    first = latents_of(embedded.ours, denoising_end=0.5, **asked | {"seed": 4})
    second = latents_of(embedded.ours, denoising_start=0.5, denoising_end=0.7, latents=first, **asked)
    third = latents_of(embedded.ours, denoising_start=0.7, latents=second, **asked)
    np.testing.assert_array_equal(third, whole)


def test_parts_with_features_that_the_seed_moves(embedded: Pair) -> None:
    """Each part is given the seed, which moves them alike."""
    asked: dict[str, Any] = {"seed": 4, "seed_variance": 0.5}
    whole = latents_of(embedded.ours, **asked)
    first = latents_of(embedded.ours, denoising_end=0.5, **asked)
    second = latents_of(embedded.ours, denoising_start=0.5, latents=first, **asked)
    np.testing.assert_array_equal(second, whole)
    assert relative_l2(whole, latents_of(embedded.ours, seed=4)) > 0.01
