"""Passes and steps at half size, as requests hold them: sizes, steps, noise, and what is written of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from max_zimage.request import wire
from max_zimage.request.legs import legs_of
from max_zimage.request.passes import Pass, read, written
from max_zimage.sampling import samplers
from max_zimage.sampling.schedule import ScheduleSpec
from tests.request.test_request import make

SPEC = ScheduleSpec(shift=3.0, num_train_timesteps=1000)
TWO: list[dict[str, Any]] = [{"scale": 0.5, "steps": 9}, {"scale": 1.0, "steps": 9, "strength": 0.5}]


def test_a_list_its_json_and_a_word_say_the_same() -> None:
    listed = make(passes=TWO).passes
    assert listed == (Pass(scale=0.5, steps=9, strength=1.0), Pass(scale=1.0, steps=9, strength=0.5))
    for same in ("0.5x9,1.0x9:0.5", ' [{"scale": 0.5, "steps": 9}, {"scale": 1, "steps": 9}]', listed):
        assert make(passes=same).passes == listed


def test_what_a_pass_does_not_say_is_the_requests() -> None:
    asked = make(passes="0.25,0.5x6:1:shift=2,1:0.3:guidance_scale=0.0", num_inference_steps=4, guidance_scale=3.0)
    assert [each.steps for each in asked.passes or ()] == [4, 6, 4]
    assert asked.num_inference_steps == 4
    assert asked.steps_by_leg == (4, 6, 2)  # int(max(4 - 4 · 0.3, 0)) = 2 are left out
    assert asked.num_steps == 12
    legs = legs_of(asked, SPEC)
    assert [leg.asked.guidance_scale for leg in legs] == [3.0, 3.0, 0.0]
    assert [leg.asked.shift for leg in legs] == [None, 2.0, None]
    assert legs[1].plan.shift == 2.0
    assert make(passes="1x4,1x4:guidance_scale=2", guidance_scale=0, negative_prompt="red").negative_prompts == ("red",)


def test_sides_are_floored_to_tokens() -> None:
    def side(scale: float, pixels: int) -> int:
        return Pass(scale=scale, steps=1, strength=1.0).side(pixels)

    assert side(0.35, 2048) == 704  # 716.8
    assert side(0.29, 1600) == 464  # in binary a little less
    assert (side(0.5, 1024), side(1.0, 1024), side(0.3, 160)) == (512, 1024, 48)


def test_a_request_keeps_its_passes_on_every_way() -> None:
    asked = make(
        passes="0.1x3:shift=1.5,0.30000000000000004x9:0.7,1.0x2:0.55", upscale="bicubic", height=512, width=512
    )
    again = wire.of_text(wire.to_text(asked))
    assert (again.passes, again.upscale) == (asked.passes, "bicubic")
    text = written(asked.passes or ())
    assert text == "0.1x3:shift=1.5,0.30000000000000004x9:0.7,1.0x2:0.55"
    assert make(passes=text, num_inference_steps=2, height=512, width=512).passes == asked.passes
    assert read("ax9b:x") == [{"scale": "a", "steps": "9b", "strength": "x"}]
    for damaged in ("0.5", "0.5x9,1.0x9", "0.5x9:y=3", "0.50x9", 3):
        with pytest.raises(wire.WireError, match="passes: must be"):
            wire.of_wire(wire.to_wire(asked) | {"passes": damaged})


def test_legs_of_passes() -> None:
    first, second = legs_of(make(passes=TWO, height=128, width=96), SPEC)
    assert [(leg.asked.height, leg.asked.width, leg.begins) for leg in (first, second)] == [
        (64, 48, "noise"),
        (128, 96, "picture"),
    ]
    assert (first.plan.num_steps, second.plan.num_steps, second.plan.left_out) == (9, 5, 4)
    np.testing.assert_array_equal(second.plan.sigmas, first.plan.sigmas[4:])
    (_, latents) = legs_of(make(passes=TWO, upscale="bicubic"), SPEC)
    assert (latents.begins, latents.drawn) == ("latents", ((8, 6),))


def test_legs_of_steps_at_half_size() -> None:
    """One schedule, of the whole size, cut in two."""
    whole = make(height=128, width=96, num_inference_steps=8)
    asked = make(height=128, width=96, num_inference_steps=8, progressive=0.3, guidance_variant="cfg_zero_star",
                 guidance_scale=2.0, zero_init=True)  # fmt: skip
    first, second = legs_of(asked, SPEC)
    assert asked.steps_by_leg == (3, 5)
    assert (first.asked.height, first.asked.width, second.asked.height, second.asked.width) == (64, 48, 128, 96)
    np.testing.assert_array_equal([*first.plan.sigmas, *second.plan.sigmas[1:]], whole.schedule(SPEC).sigmas)
    assert (first.plan.cut_off, second.plan.left_out) == (5, 3)
    assert (first.asked.zero_init, second.asked.zero_init) == (True, False)


@pytest.mark.parametrize("kind", ["philox", "torch"])
def test_every_leg_has_noise_of_its_own(kind: str) -> None:
    """Of a picture's seed alone, whichever picture of a request it is."""
    asked = make(passes="1x4,1x4,1x4", noise=kind, seed=7, num_images_per_prompt=2)
    alone = make(passes="1x4,1x4,1x4", noise=kind, seed=8)
    shape = (16, 16, 12)
    drawn = []
    for leg in legs_of(asked, SPEC):
        source = leg.noise_source(asked, 1)
        drawn.append(source.starting(1, shape))
        np.testing.assert_array_equal(drawn[-1], leg.noise_source(alone, 0).starting(1, shape))
        if leg.begins == "picture":
            drawn.append(source.posterior(1, shape))
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.06


def test_legs_are_counted() -> None:
    asked = make(passes=TWO, sampler="heun")
    assert asked.num_evaluations == samplers.cost("heun", 9)[0] + samplers.cost("heun", 5)[0]
