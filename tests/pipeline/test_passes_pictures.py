"""Runs of several passes, and with steps at half size, against diffusers' own parts put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline
from PIL import Image

from max_zimage import FirstBlockCache, TaylorSeer
from max_zimage.device.devices import download
from max_zimage.errors import RequestError
from max_zimage.pipeline.not_finite import NotFiniteError
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.noise import standard_normal
from tests.recording import RecordProperty
from tests.references.diffusers_runs import (
    Call,
    FloatArray,
    Pair,
    reference_features,
    reference_prediction,
    relative_l2,
)
from tests.references.engine_runs import inputs_of
from tests.serving.test_step_scheduler import Worker
from tests.tolerances import BFLOAT16_RATIO, PIXEL_SHARE, SAMPLED_L2

PROMPT, SEED = "a red star on a blue background", 4
SIZE: dict[str, Any] = {"height": 96, "width": 128}
STREAM = 2**40  # between the noise of one leg and that of the next


def latents_of(pair: Pair, **more: Any) -> FloatArray:
    asked: dict[str, Any] = {"guidance_scale": 2.0, "seed": SEED, "output_type": "latent"}
    return np.asarray(pair.ours(PROMPT, **SIZE | asked | more))


def interpolated(latents: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(latents, sides, mode="bicubic", align_corners=False)


class Theirs:
    """diffusers, one generator running through all parts."""

    def __init__(self, pair: Pair, guidance: float = 2.0) -> None:
        self.generator = torch.Generator().manual_seed(SEED)
        self.text_to_image = pair.theirs
        self.image_to_image = ZImageImg2ImgPipeline(**pair.theirs.components)
        self.image_to_image.set_progress_bar_config(disable=True)
        self.guidance = guidance

    def first(self, height: int, width: int, steps: int, output_type: str) -> Any:
        self._reset()
        return self.text_to_image(PROMPT, height=height, width=width, **self._common(steps, output_type)).images

    def go_on(self, height: int, width: int, steps: int, strength: float, output_type: str, **given: Any) -> Any:
        self._reset()
        sides = {"height": height, "width": width, "strength": strength}
        return self.image_to_image(PROMPT, **sides, **self._common(steps, output_type), **given).images

    def level(self, steps: int, strength: float) -> float:
        """The noise level that image-to-image begins with."""
        self._reset()
        self.image_to_image.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        left_out = int(max(steps - min(steps * strength, steps), 0))
        return float(self.image_to_image.scheduler.sigmas[left_out])

    def _reset(self) -> None:
        self.text_to_image.scheduler.set_shift(self.text_to_image.scheduler.config.shift)

    def _common(self, steps: int, output_type: str) -> dict[str, Any]:
        asked = {"num_inference_steps": steps, "output_type": output_type, "generator": self.generator}
        return asked | {"guidance_scale": self.guidance}


def test_passes_are_diffusers_parts_put_together(embedded: Pair) -> None:
    """Text to image, then twice Lanczos and image-to-image; the second size is floored from 72 x 96."""
    theirs = Theirs(embedded)
    picture: Image.Image = theirs.first(48, 64, 4, "pil")[0]
    alone = embedded.ours(PROMPT, height=48, width=64, num_inference_steps=4, seed=SEED, noise="torch",
                          guidance_scale=2.0, output_type="np")  # fmt: skip
    np.testing.assert_array_equal(alone[0], np.asarray(picture))  # a level more or less would show below
    picture = theirs.go_on(
        64, 96, 5, 0.6, "pil", image=picture.resize((96, 64), Image.Resampling.LANCZOS)
    )[0]  # fmt: skip
    large = picture.resize((128, 96), Image.Resampling.LANCZOS)
    expected = theirs.go_on(96, 128, 4, 0.5, "latent", image=large).numpy()
    passes = [{"scale": 0.5, "steps": 4}, {"scale": 0.75, "steps": 5, "strength": 0.6}, {"scale": 1.0, "steps": 4}]
    assert relative_l2(latents_of(embedded, passes=passes, noise="torch"), expected) <= SAMPLED_L2


IN_LATENTS: dict[str, Any] = {"passes": "0.5x4,1x6:0.6", "upscale": "bicubic", "noise": "torch"}


def in_latents(pair: Pair) -> FloatArray:
    """The same of diffusers, its latents interpolated by torch."""
    theirs = Theirs(pair)
    small = theirs.first(48, 64, 4, "latent").float()
    noise, level = torch.randn((1, 16, 12, 16), generator=theirs.generator), theirs.level(6, 0.6)
    start = level * noise + (1 - level) * interpolated(small, (12, 16))
    blank = Image.new("RGB", (128, 96))
    return np.asarray(theirs.go_on(96, 128, 6, 0.6, "latent", image=blank, latents=start).float().numpy())


def test_latents_are_interpolated_as_torch_does(embedded: Pair) -> None:
    assert relative_l2(latents_of(embedded, **IN_LATENTS), in_latents(embedded)) <= SAMPLED_L2


@pytest.mark.slow  # as the other tests in bfloat16: its graphs take minutes to compile
def test_in_bfloat16_they_are_as_near_as_the_reference(
    embedded: Pair, embedded_bfloat16: Pair, record_property: RecordProperty
) -> None:
    exact = in_latents(embedded)
    usual = relative_l2(in_latents(embedded_bfloat16), exact)
    error = relative_l2(latents_of(embedded_bfloat16, **IN_LATENTS), exact)
    record_property("bfloat16_ratio", error / usual)
    assert error <= BFLOAT16_RATIO * usual


def test_a_single_pass_is_no_pass(embedded: Pair) -> None:
    one = latents_of(embedded, passes=[{"scale": 1.0}], num_inference_steps=3)
    np.testing.assert_array_equal(one, latents_of(embedded, num_inference_steps=3))


def test_passes_that_say_more(embedded: Pair) -> None:
    """Shift and guidance of their own: guidance that begins, and ends, with a pass."""
    theirs = Theirs(embedded, guidance=0.0)
    small = theirs.first(48, 64, 4, "latent").float()
    noise, level = torch.randn((1, 16, 12, 16), generator=theirs.generator), theirs.level(5, 0.5)
    start = level * noise + (1 - level) * interpolated(small, (12, 16))
    theirs.guidance = 3.0
    expected = theirs.go_on(96, 128, 5, 0.5, "latent", image=Image.new("RGB", (128, 96)), latents=start).numpy()
    for passes, guidance in (("0.5x4,1x5:0.5:guidance_scale=3", 0.0), ("0.5x4:guidance_scale=0,1x5:0.5", 3.0)):
        found = latents_of(embedded, passes=passes, guidance_scale=guidance, upscale="bicubic", noise="torch")
        assert relative_l2(found, expected) <= SAMPLED_L2
    other = latents_of(embedded, passes="0.5x4:shift=1.5,1x5:0.5", guidance_scale=3.0, upscale="bicubic", noise="torch")
    assert relative_l2(other, expected) > 0.01


def progressive_of_reference(pair: Pair, half: int, steps: int, guidance: float) -> FloatArray:
    """Euler around the reference's transformer: small, its clean estimate twice as large, noise, large."""
    call = Call(prompts=(PROMPT,), height=96, width=128, guidance=guidance, steps=steps)
    features = reference_features(pair, call)
    theirs = pair.theirs.scheduler
    theirs.set_shift(theirs.config.shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    sigmas, times = theirs.sigmas.numpy(), (1000 - theirs.timesteps.numpy()) / 1000
    latents = standard_normal(SEED, (1, 16, 6, 8))
    clean = latents
    for step in range(steps):
        if step == half:
            noise = standard_normal(SEED, (1, 16, 12, 16), STREAM)
            large = interpolated(torch.from_numpy(clean), (12, 16)).numpy()
            latents = sigmas[step] * noise + (1 - sigmas[step]) * large
        first, other = (reference_prediction(pair, latents, float(times[step]), list(each)) for each in features)
        prediction = first + np.float32(guidance) * (first - other)
        clean = latents + sigmas[step] * prediction
        latents = latents - (sigmas[step + 1] - sigmas[step]) * prediction
    return np.asarray(latents, np.float32)


@pytest.mark.parametrize(("share", "half"), [(0.3, 2), (0.5, 3)])
def test_steps_at_half_size(share: float, half: int, embedded: Pair) -> None:
    expected = progressive_of_reference(embedded, half, 6, 0.5)
    found = latents_of(embedded, progressive=share, num_inference_steps=6, guidance_scale=0.5)
    assert relative_l2(found, expected) <= SAMPLED_L2


@pytest.mark.parametrize(
    "asked",
    [
        {"progressive": 0.4, "sampler": "heun"},
        {"progressive": 0.4, "sampler": "dpmpp_sde", "sigma_shape": "karras"},
        {"passes": "0.5,1:0.6", "sampler": "er_sde", "slg": True},
        {"passes": "0.5,1:0.6", "upscale": "bicubic", "sampler": "unipc", "noise": "torch"},
        {"progressive": 0.3, "guidance_variant": "apg", "apg_momentum": -0.5, "guidance_interval": (0.2, 0.8)},
    ],
    ids=lambda asked: "-".join(map(str, asked.values())),
)
def test_each_picture_is_what_its_seed_makes_alone(asked: dict[str, Any], embedded: Pair) -> None:
    common: dict[str, Any] = {**asked, "num_inference_steps": 6}
    both = latents_of(embedded, **common, num_images_per_prompt=2)
    alone = latents_of(embedded, **common | {"seed": SEED + 1})
    assert np.isfinite(both).all()
    # Through a picture a level more or less may come of the rounding in a batch of another shape.
    assert relative_l2(both[1:], alone) <= (2e-3 if asked.get("passes") and "upscale" not in asked else 5 * SAMPLED_L2)
    assert relative_l2(both[:1], alone) > 0.1


@pytest.mark.parametrize("more", [{"passes": "0.5x9,1x9:0.9", "upscale": "bicubic"}, {"progressive": 0.5}], ids=str)
def test_caches_begin_anew_with_each_size(more: dict[str, Any], embedded: Pair) -> None:
    """One that leaves nothing out changes nothing; of one that does, each leg has its own warm-up."""
    asked: dict[str, Any] = {"num_inference_steps": 18 if "progressive" in more else None, **more}
    plain = latents_of(embedded, **asked)
    for cache in (FirstBlockCache(threshold=1e-30), TaylorSeer(cache_interval=1)):
        assert relative_l2(latents_of(embedded, **asked, step_cache=cache), plain) <= SAMPLED_L2
    cache = TaylorSeer(cache_interval=3, warmup_steps=2)
    sources = embedded.ours.sources
    request = GenerationRequest.create(
        limits=sources.limits, defaults=sources.defaults, prompt=PROMPT, seed=SEED, guidance_scale=0.0,
        step_cache=cache, **SIZE, **asked,
    )  # fmt: skip
    run = embedded.ours.denoising(inputs_of(embedded.ours, request))
    run.run()
    expected = np.concatenate([cache.computes(count) for count in request.steps_by_leg])
    np.testing.assert_array_equal(run.computed()[:, 0], expected)
    assert expected.sum() < run.num_steps
    assert np.isfinite(download(run.latents)).all()


@pytest.mark.parametrize("upscale", ["lanczos", "bicubic"])
def test_a_lost_picture_stays_lost_and_costs_no_other(upscale: str, embedded: Pair) -> None:
    def spoil(pipeline: object, step: int, timestep: float, values: dict[str, Any]) -> None:
        if step == 1:  # the last step of the first pass: finite, and the square is not
            values["latents"][0] = 3e38

    asked: dict[str, Any] = {"passes": "0.5x2,1x2:0.5", "upscale": upscale, "num_images_per_prompt": 2}
    with pytest.raises(NotFiniteError, match="picture 0 of 2") as error:
        latents_of(embedded, **asked, callback_on_step_end=spoil)
    lost, other = error.value.images
    assert lost is None
    np.testing.assert_array_equal(other, latents_of(embedded, **asked)[1])


def test_callbacks_see_every_step_in_its_size(embedded: Pair) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def note(pipeline: object, step: int, timestep: float, values: dict[str, Any]) -> None:
        seen.append((step, values["latents"].shape[2:]))

    def replace(pipeline: object, step: int, timestep: float, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * np.float32(0.5)}

    for asked in ({"passes": "0.5x3,1x4:0.5", "upscale": "bicubic"}, {"progressive": 0.6, "num_inference_steps": 5}):
        plain = latents_of(embedded, **asked, callback_on_step_end=note)
        assert seen == [(step, (6, 8) if step < 3 else (12, 16)) for step in range(5)]
        seen.clear()
        np.testing.assert_array_equal(latents_of(embedded, **asked), plain)
        assert relative_l2(latents_of(embedded, **asked, callback_on_step_end=replace), plain) > 0.1


def test_a_server_shares_passes_and_drops_who_leaves(embedded: Pair) -> None:
    """Two share all steps of both legs; when a third one leaves in the first leg, the others go on as they were."""
    worker = Worker(embedded.ours)
    metadata = {"passes": "0.5,1x4:0.5", "upscale": "bicubic"}
    first = worker.ask(PROMPT, seed=SEED, metadata=metadata)
    gone = worker.ask("a green ring", seed=1, metadata=metadata)
    last = worker.ask("a blue circle", seed=9, metadata=metadata, negative_prompt="red")
    other = worker.ask(PROMPT, seed=SEED, metadata={"progressive": "0.5"}, steps=4)
    for _ in range(3):
        worker.turn()
    worker.cancels.put([gone.request_id])
    worker.finish()
    assert worker.is_cancelled(gone)
    assert worker.steps(first) == [(0, 3), (1, 3), (2, 3), *((step, 2) for step in (3, 4, 5))]
    assert worker.steps(other) == [(step, 1) for step in range(5)]
    common: dict[str, Any] = {"height": 128, "width": 128, "guidance_scale": 2.0, "output_type": "np"}
    for asked, prompt, more in (
        (first, PROMPT, {"seed": SEED, "num_inference_steps": 3, **metadata}),
        (last, "a blue circle", {"seed": 9, "num_inference_steps": 3, "negative_prompt": "red", **metadata}),
        (other, PROMPT, {"seed": SEED, "progressive": 0.5, "num_inference_steps": 4}),
    ):
        expected = embedded.ours(prompt, **common, **more)[0]
        assert np.mean(np.abs(worker.pictures(asked)[0].astype(int) - expected) <= 1) >= PIXEL_SHARE


def test_a_generator_draws_no_passes(embedded: Pair) -> None:
    for more in ({"passes": "0.5,1"}, {"progressive": 0.5}):
        with pytest.raises(RequestError, match=r'exclude each other.* with noise="torch"'):
            embedded.ours(PROMPT, generator=torch.Generator(), **more)
