"""Guidance that is not linear, as a compiled graph, beside diffusers' guiders and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from max.driver import CPU

from max_zimage.device.devices import download, upload
from max_zimage.graphs.guiders.variants import VariantInputs
from max_zimage.sampling.guidance import Variant
from tests.references.diffusers_runs import FloatArray, Pair, relative_l2
from tests.sampling.guiders import NumpyGuide

GUIDED_L2 = 1e-6
TOKENS = 24


def branches(seed: int, width: int) -> FloatArray:
    """Positive and negative of two pictures, alike but not equal."""
    random = np.random.default_rng(seed)
    positive = random.standard_normal((2, TOKENS, width))
    negative = positive + 0.3 * random.standard_normal((2, TOKENS, width)) + 0.1
    return np.concatenate([positive, negative]).astype(np.float32)


def compiled(
    pair: Pair, velocity: FloatArray, variant: Variant, scale: float, running: FloatArray | None = None, kept: int = 1
) -> tuple[FloatArray, FloatArray]:
    """Prediction and running difference of two pictures; the update behind it is Euler's."""
    width = velocity.shape[-1]
    running = np.zeros((2, TOKENS, width), np.float32) if running is None else running

    def number(value: float) -> Any:
        return upload(np.full(1, value, np.float32), CPU())

    rows = [upload(np.asarray(each, np.int32), CPU()) for each in ([0, 1], [2, 3])]
    others = upload(np.zeros((0, 2), np.int32), CPU())
    nothing = [upload(np.zeros(shape, np.float32), CPU()) for shape in ((0,), (0, 2, TOKENS, width), (0, 2), (0, 0))]
    given = VariantInputs(
        zero_star=number(variant.name == "cfg_zero_star"),
        projected=number(variant.name == "apg"),
        eta=number(variant.eta),
        momentum=number(variant.momentum),
        norm_threshold=number(variant.norm_threshold),
        rescale=number(variant.rescale),
        kept=number(kept),
        running=upload(running, CPU()),
    )
    latents, euler = upload(velocity[:2], CPU()), upload(np.asarray([-1.0, 0.0], np.float32), CPU())
    moved, _, prediction, after = pair.ours.transformer.guided_update(
        latents, upload(velocity, CPU()), *rows, others, number(scale), nothing[0], *given,
        nothing[1], euler, nothing[0], nothing[2], nothing[3],
    )  # fmt: skip
    np.testing.assert_allclose(download(moved), velocity[:2] + download(prediction), rtol=1e-6, atol=1e-6)
    return download(prediction), download(after)


def of_diffusers(guider: Any, velocity: FloatArray, step: int = 0) -> FloatArray:
    """What a guider makes of the two pictures; its scale counts from 1."""
    guider.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(500.0))
    positive, negative = torch.from_numpy(velocity).chunk(2)
    return np.asarray(guider.forward(pred_cond=positive, pred_uncond=negative).pred)


@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_cfg_and_zero_star_are_the_guiders_of_diffusers(scale: float, rescale: float, embedded: Pair) -> None:
    velocity = branches(1, embedded.ours.transformer.spec.patch_dim)
    plain = ClassifierFreeGuidance(guidance_scale=1 + scale, guidance_rescale=rescale)
    star = ClassifierFreeZeroStarGuidance(guidance_scale=1 + scale, guidance_rescale=rescale, zero_init_steps=1)
    for name, guider in (("cfg", plain), ("cfg_zero_star", star)):
        ours, _ = compiled(embedded, velocity, Variant(name=name, rescale=rescale), scale)  # type: ignore[arg-type]
        assert relative_l2(ours, of_diffusers(guider, velocity, step=3)) <= GUIDED_L2
    if not rescale:  # there 0 divided by 0
        assert np.abs(of_diffusers(star, velocity, step=0)).max() == 0
    zeroed = Variant(name="cfg_zero_star", zero_init=True, rescale=rescale)
    nothing, _ = compiled(embedded, velocity, zeroed, scale, kept=0)
    assert np.abs(nothing).max() == 0


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 5.0, 15.0])
def test_apg_is_the_guider_of_diffusers(eta: float, threshold: float, embedded: Pair) -> None:
    velocity = branches(2, embedded.ours.transformer.spec.patch_dim)
    guider = AdaptiveProjectedGuidance(
        guidance_scale=4.5, eta=eta, adaptive_projected_guidance_rescale=threshold, guidance_rescale=0.3
    )
    variant = Variant(name="apg", eta=eta, norm_threshold=threshold, rescale=0.3)
    ours, _ = compiled(embedded, velocity, variant, 3.5)
    assert relative_l2(ours, of_diffusers(guider, velocity)) <= GUIDED_L2


def test_momentum_is_that_of_diffusers_and_belongs_to_each_picture(embedded: Pair) -> None:
    width = embedded.ours.transformer.spec.patch_dim
    variant = Variant(name="apg", eta=0.2, momentum=-0.5, norm_threshold=8.0)
    buffer, running, guides = MomentumBuffer(-0.5), None, [NumpyGuide(variant), NumpyGuide(variant)]
    for step in range(4):
        velocity = branches(10 + step, width)
        ours, running = compiled(embedded, velocity, variant, 3.0, running)
        positive, negative = torch.from_numpy(velocity).chunk(2)
        theirs = normalized_guidance(positive, negative, 4.0, buffer, 0.2, 8.0, False)
        assert relative_l2(ours, np.asarray(theirs)) <= GUIDED_L2
        for picture, guide in enumerate(guides):
            alone = guide(velocity[picture], velocity[2 + picture], 3.0, 0.0, step)
            assert relative_l2(ours[picture], alone) <= GUIDED_L2


def test_rescaling_is_that_of_diffusers(embedded: Pair) -> None:
    velocity = branches(3, embedded.ours.transformer.spec.patch_dim)
    ours, _ = compiled(embedded, velocity, Variant(rescale=1.0), 2.0)
    positive, negative = torch.from_numpy(velocity).chunk(2)
    guided = positive + 2.0 * (positive - negative)
    assert relative_l2(ours, np.asarray(rescale_noise_cfg(guided, positive, 1.0))) <= GUIDED_L2
