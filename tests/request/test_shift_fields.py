"""`dynamic_shift` and `shift_terminal`: diffusers' levels to the bit, and what does not go with them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas

from max_zimage.checkpoint.schedule_config import schedule_spec
from max_zimage.cli.field_flags import given_fields
from max_zimage.cli.main import _parser
from max_zimage.cli.repeating import without_replaced
from max_zimage.errors import RequestError
from max_zimage.request import wire
from max_zimage.request.configured import with_configured
from max_zimage.request.legs import legs_of
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.names import SIGMA_SHAPES, STRETCHED, UNSHIFTED
from max_zimage.sampling.schedule import Schedule
from tests.request.test_request import make

CONFIG: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
ENDS = {"base_shift": 0.7, "max_shift": 2.0, "base_image_seq_len": 128, "max_image_seq_len": 9000}
SIZES = [(64, 48), (256, 256), (512, 768), (1024, 1024), (1536, 1024), (2048, 2048)]
ASKED: list[dict[str, Any]] = [
    {"dynamic_shift": True},
    {"dynamic_shift": False},
    {"shift_terminal": 0.02},
    {"dynamic_shift": True, "shift_terminal": 0.1},
    {"shift": 6.0, "shift_terminal": 0.3},
    {"shift": 2.0, "dynamic_shift": False},
]


def theirs(config: dict[str, Any], asked: dict[str, Any], height: int, width: int, sigmas: list[float]) -> np.ndarray:
    """Levels as diffusers' pipeline makes them with the request's values in the scheduler's configuration."""
    own = {"dynamic_shift": "use_dynamic_shifting", "shift_terminal": "shift_terminal", "shift": "shift"}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config | {own[name]: asked[name] for name in asked})
    ends = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    usual = (256, 4096, 0.5, 1.15)
    mu = calculate_shift(
        (height // 16) * (width // 16), *(config.get(name, value) for name, value in zip(ends, usual, strict=True))
    )
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    found: np.ndarray = scheduler.sigmas.numpy()
    return found


def ours(config: dict[str, Any], asked: dict[str, Any], **more: Any) -> Schedule:
    return make(**asked, **more).schedule(schedule_spec(config))


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "-".join(asked))
@pytest.mark.parametrize(
    "config",
    [
        {},
        ENDS,
        {"use_dynamic_shifting": True, "shift_terminal": 0.05},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", **ENDS},
    ],
    ids=["plain", "ends", "dynamic", "linear"],
)
@pytest.mark.parametrize("shape", ["linear", "karras", "exponential"])
def test_levels_are_those_of_diffusers_to_the_bit(asked: dict[str, Any], config: dict[str, Any], shape: str) -> None:
    spread = {} if shape == "linear" else {f"use_{shape}_sigmas": True}
    as_theirs = asked | ({"dynamic_shift": False} if "shift" in asked else {})  # an explicit shift is a static one
    for height, width in SIZES:
        for steps in (2, 4, 8, 9, 50):
            expected = theirs(CONFIG | config | spread, as_theirs, height, width, get_default_z_image_sigmas(steps))
            found = ours(
                CONFIG | config, asked, height=height, width=width, num_inference_steps=steps, sigma_shape=shape
            )
            np.testing.assert_array_equal(found.sigmas, expected, err_msg=f"{height}x{width}, {steps} steps")


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "-".join(asked))
def test_levels_of_ones_own_are_shifted_and_stretched_as_in_diffusers(asked: dict[str, Any]) -> None:
    for sigmas in ([1.0, 0.9, 0.5, 0.1], [0.7, 0.31, 0.002], [0.6]):
        expected = theirs(CONFIG, asked, 512, 768, sigmas)
        np.testing.assert_array_equal(ours(CONFIG, asked, height=512, width=768, sigmas=sigmas).sigmas, expected)
    # A checkpoint's own spread, which diffusers would apply again, is not.
    spread = ours(CONFIG | {"use_karras_sigmas": True}, asked, sigmas=[1.0, 0.9, 0.5, 0.1])
    np.testing.assert_array_equal(spread.sigmas, ours(CONFIG, asked, sigmas=[1.0, 0.9, 0.5, 0.1]).sigmas)


def test_a_fixed_mu_is_the_shift_of_its_power() -> None:
    mu = 0.9
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(9), mu=mu)
    found = ours(CONFIG, {"shift": math.exp(mu)}, num_inference_steps=9)
    np.testing.assert_allclose(found.sigmas, scheduler.sigmas.numpy(), rtol=2e-7)


@pytest.mark.parametrize("shape", [shape for shape in SIGMA_SHAPES if shape not in UNSHIFTED])
def test_every_shape_that_is_shifted_takes_the_grown_shift(shape: str) -> None:
    size: dict[str, Any] = {"height": 1024, "width": 1024, "num_inference_steps": 10, "sigma_shape": shape}
    grown, fixed = ours(CONFIG, {"dynamic_shift": True}, **size), ours(CONFIG, {"shift": math.exp(1.15)}, **size)
    assert grown.shift == pytest.approx(fixed.shift, rel=1e-12)
    np.testing.assert_allclose(grown.sigmas, fixed.sigmas, rtol=1e-6)
    assert np.abs(grown.sigmas - ours(CONFIG, {}, **size).sigmas).max() > 1e-6


@pytest.mark.parametrize("asked", [{"dynamic_shift": True}, {"shift_terminal": 0.1}, {"shift": 2.0}, {}])
def test_position_extrapolation_leaves_the_shift_alone(asked: dict[str, Any]) -> None:
    size: dict[str, Any] = {"height": 2048, "width": 1024}
    plain, large = ours(CONFIG, asked, **size), ours(CONFIG, asked, **size, dype="vision_yarn")
    np.testing.assert_array_equal(plain.sigmas, large.sigmas)


def test_every_pass_has_the_shift_of_its_size() -> None:
    request = make(
        height=1024, width=1024, passes="0.5x4,1.0x4:1.0,1.0x4:1.0:shift=2", dynamic_shift=True, guidance_scale=0
    )
    shifts = [leg.plan.shift for leg in legs_of(request, schedule_spec(CONFIG))]
    assert shifts == [pytest.approx(math.exp(calculate_shift(1024))), pytest.approx(math.exp(1.15)), 2.0]
    halved = make(height=1024, width=1024, progressive=0.5, dynamic_shift=True, guidance_scale=0)
    shifts = [leg.plan.shift for leg in legs_of(halved, schedule_spec(CONFIG))]
    assert shifts == [pytest.approx(math.exp(1.15))] * 2


_BETWEEN = "shift_terminal must be a number above 0 and below 1, got"
BAD_SHIFTS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"dynamic_shift": True, "shift": 3},
        "dynamic_shift",
        "dynamic_shift grows with the picture, and shift 3 is one shift for all sizes; leave one out",
    ),
    (
        {"dynamic_shift": True, "sigma_shape": "bong_tangent"},
        "dynamic_shift",
        "dynamic_shift would do nothing: sigma_shape bong_tangent is not shifted; take another, or leave it out",
    ),
    (
        {"shift_terminal": 0.1, "sigma_shape": "simple"},
        "shift_terminal",
        "shift_terminal would do nothing: sigma_shape simple has a last level of its own; take one of linear, karras, "
        "exponential, beta, or leave it out",
    ),
    ({"shift_terminal": 0}, "shift_terminal", f"{_BETWEEN} 0 (int)"),
    ({"shift_terminal": 1.0}, "shift_terminal", f"{_BETWEEN} 1.0 (float)"),
    (
        {"shift_terminal": True},
        "shift_terminal",
        f"{_BETWEEN} True (bool)",
    ),
    ({"dynamic_shift": 1}, "dynamic_shift", "dynamic_shift must be true or false, got 1 (int)"),
]


@pytest.mark.parametrize(("asked", "field", "said"), BAD_SHIFTS)
def test_what_does_not_go_together_is_refused(asked: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        make(**asked)
    assert (caught.value.problems[0].field, str(caught.value)) == (field, said)


@pytest.mark.parametrize("shape", SIGMA_SHAPES)
def test_shapes_that_would_show_nothing_of_them_are_refused(shape: str) -> None:
    for asked, is_taken in (
        ({"dynamic_shift": True}, shape not in UNSHIFTED),
        ({"shift_terminal": 0.1}, shape in STRETCHED),
    ):
        try:
            make(**asked, sigma_shape=shape)
        except RequestError:
            assert not is_taken
        else:
            assert is_taken


@pytest.mark.parametrize(
    ("asked", "config", "said"),
    [
        (
            {"shift_terminal": 0.1, "num_inference_steps": 1},
            {},
            "shift_terminal 0.1 is a level between 1 and 0, and there is one step from 1 to 0; ask for more steps, or "
            "leave it out",
        ),
        ({"shift_terminal": 0.1, "sigmas": [1.0]}, {}, "shift_terminal 0.1 is a level between 1 and 0"),
        ({"shift_terminal": 1 - 1e-9}, {}, "shift_terminal: sigmas must fall at every step in float32"),
        (
            {"dynamic_shift": True, "height": 4096, "width": 4096},
            {},
            "dynamic_shift: the dynamic shift for 65536 image tokens is 103777, and must be from 0.01 to 100",
        ),
        (
            {"dynamic_shift": True},
            {"base_image_seq_len": 64, "max_image_seq_len": 64},
            "dynamic_shift: base_image_seq_len and max_image_seq_len must differ, got 64 for both",
        ),
    ],
)
def test_a_schedule_that_cannot_be_names_the_field(asked: dict[str, Any], config: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        ours(CONFIG | config, asked)
    assert str(caught.value).startswith(said)


def test_a_checkpoints_last_level_leaves_one_step_alone() -> None:
    """As before a request could say it: nobody asked for a level that there is not."""
    assert ours(CONFIG | {"shift_terminal": 0.1}, {}, num_inference_steps=1).sigmas.tolist() == [1, 0]


def parameters(request: GenerationRequest) -> GenerationParameters:
    return GenerationParameters.of(request, model="m", weight_paths=(), dtype="float32", device="cpu")


@pytest.mark.parametrize("asked", [*ASKED, {}], ids=lambda asked: "-".join(asked))
def test_pictures_remember_them_and_say_nothing_in_those_from_before(asked: dict[str, Any]) -> None:
    request = make(**asked)
    again = GenerationParameters.from_json(parameters(request).to_json())
    for name in ("dynamic_shift", "shift_terminal"):
        assert getattr(again, name) == getattr(wire.of_text(wire.to_text(request)), name) == asked.get(name)
    old = json.loads(parameters(request).to_json()) | {"format_version": 4}
    for name in ("dynamic_shift", "shift_terminal", "original_prompt", "enhanced_by", "attention_backend"):
        del old[name]
    assert GenerationParameters.from_json(json.dumps(old)).dynamic_shift is None


def test_flags() -> None:
    for words, value in (([], {}), (["--dynamic-shift"], True), (["--no-dynamic-shift"], False)):
        found = given_fields(_parser().parse_args(["generate", "x", *words, "--shift-terminal", "0.1"]))
        assert found == {"prompt": "x", "shift_terminal": 0.1} | ({"dynamic_shift": value} if words else {})


LEFT: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"dynamic_shift": True}, {"shift": 3.0}, {"dynamic_shift": True}),
    ({"dynamic_shift": False}, {"shift": 3.0}, {"dynamic_shift": False, "shift": 3.0}),
    ({"shift": 2.0}, {"dynamic_shift": True}, {"shift": 2.0}),
    ({"dynamic_shift": True}, {"sigma_shape": "bong_tangent"}, {"dynamic_shift": True}),
    ({"dynamic_shift": True}, {"sigma_shape": "simple"}, {"dynamic_shift": True, "sigma_shape": "simple"}),
    ({"sigma_shape": "bong_tangent"}, {"dynamic_shift": True, "shift_terminal": 0.1}, {"sigma_shape": "bong_tangent"}),
    ({"sigma_shape": "karras"}, {"shift_terminal": 0.1}, {"sigma_shape": "karras", "shift_terminal": 0.1}),
    ({"shift_terminal": 0.1}, {"sigma_shape": "normal"}, {"shift_terminal": 0.1}),
]


@pytest.mark.parametrize(("said", "beneath", "left"), LEFT)
def test_what_a_request_says_leaves_out_what_it_excludes(
    said: dict[str, Any], beneath: dict[str, Any], left: dict[str, Any]
) -> None:
    """Beneath stands a configuration, or a picture that is drawn again."""
    assert with_configured(said, beneath) == left
    assert without_replaced(beneath, said) | said == left
    make(**left)


def test_only_requests_of_one_shift_share_a_batch() -> None:
    """Stretched levels do not show it, and samplers that begin below 1 go by it."""

    def key(**arguments: Any) -> str:
        request = make(sampler="er_sde", num_inference_steps=2, **arguments)
        return wire.sharing_key(request, request.schedule(schedule_spec(CONFIG)))

    low, high = key(shift=3.0, shift_terminal=0.5), key(shift=6.0, shift_terminal=0.5)
    assert json.loads(low)[0] == json.loads(high)[0]
    assert len({low, high, key(shift=3.0), key(dynamic_shift=True), key(sigma_shape="bong_tangent", shift=2.0)}) == 5
    assert key() == key(shift=3.0)
