"""The exact text of every message about a request, as Python, the command line and the two HTTP APIs say it.

`python -m tests.request.test_messages_golden` writes messages.txt anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage.errors import Problem, RequestError, RequestWarning
from max_zimage.images.read import decode_image, image_of_data_url, picture_pixels, starting_image
from max_zimage.request.checks import check_token_count
from max_zimage.request.fields import FLAGS
from max_zimage.sampling.schedule import ScheduleSpec
from max_zimage.serving.http.api_names import IMAGES, RESPONSES, refused
from tests.request.test_prompt_features import BAD_REQUESTS
from tests.request.test_repeat import encoded
from tests.request.test_request import BAD, LIMITS, features, make
from tests.request.test_shift_fields import BAD_SHIFTS

GOLDEN = Path(__file__).parent / "messages.txt"
SPEC = ScheduleSpec(shift=3.0, num_train_timesteps=1000)
LATENTS = np.zeros((1, 16, 16, 12), np.float32)
START = np.zeros((128, 96, 3), np.uint8)
MASK = np.zeros((128, 96), np.uint8)
DAMAGED = b"\x89PNG\r\n\x1a\n"


def frames() -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 255)]


REQUESTS: list[dict[str, Any]] = [
    *(arguments for arguments, _, _ in BAD),
    *(arguments for arguments, _, _ in BAD_SHIFTS),
    *({"prompt": None, "guidance_scale": 0.0} | arguments for arguments, _, _ in BAD_REQUESTS),
    {"guidance_scale": 1e-45},
    {"guidance_scale": 10**400},
    {"guidance_scale": "much"},
    {"cfg_normalization": 1e-45},
    {"sigmas": [0.5, 1e-45]},
    {"sampler": "dpm"},
    {"sampler": 3},
    {"sampler": "heun", "num_inference_steps": 600},
    {"sampler": "dpmpp_sde", "step_cache": "taylorseer", "num_inference_steps": 30},
    {"sigma_shape": "cubic"},
    {"sigma_shape": "karras", "sigmas": [1.0, 0.5]},
    {"mask_image": MASK},
    {"outpaint": [16, 0, 0, 0]},
    {"image": START, "outpaint": [16, 0, 0]},
    {"image": START, "outpaint": [0, 0, 0, 0]},
    {"image": START, "outpaint": [-16, 0, 0, 1.5]},
    {"image": START, "outpaint": [8, 0, 0, 0]},
    {"image": START, "outpaint": [16, 0, 0, 0], "height": 128, "width": 96},
    {"image": START, "mask_image": "mask.png"},
    {"image": START, "mask_image": MASK.astype(np.float32)},
    {"image": START, "mask_image": np.zeros((128, 96, 4), np.uint8)},
    {"image": START, "mask_image": Image.new("RGBA", (96, 128))},
    {"image": START, "soft_mask": True},
    {"image": START, "composite": True},
    {"image": START, "composite": "yes"},
    {"image": START, "mask_image": MASK, "composite": True, "output_type": "latent"},
    {"image": START, "mask_image": MASK, "denoising_end": 0.5},
    {"long_prompt_mode": "cut"},
    {"loras": "style.safetensors"},
    {"loras": ["gone.safetensors"]},
    {"loras": ["/"]},
    {"loras": [3]},
    {"loras": [("gone.safetensors", float("nan")), {"name": "gone.safetensors", "strength": 1}]},
    {"loras": [("gone.safetensors", "0.8")]},
    {"loras": ["gone.safetensors"] * 33},
    {"hidden_layer": 37},
    {"hidden_layer": -38.0},
    {"hidden_layer": True},
    {"hidden_layer": "last"},
    {"hidden_layer": "-2:0.7,-5"},
    {"hidden_layer": '{"-2": 0.7, "-40": 0.3}'},
    {"hidden_layer": {}},
    {"hidden_layer": ",".join(["-2:0.5"] * 38)},
    {"hidden_layer": {-2: 1e308, -3: 1e308}},
    {"hidden_layer": {-2: 0.7, -40: 0.3, -41: "x", "first": 1, -3: float("nan"), -4: 10**400}},
    {"hidden_layer": {-2: 0.5, 35: 0.5}},
    {"hidden_layer": {-2: 0.5, -3: -0.5}},
    {"hidden_layer": {-2: 1.0, -3: -0.9999}},
    {"hidden_layer": -3, "prompt": None, "prompt_embeds": features(3), "negative_prompt_embeds": features(3)},
    {"system_prompt": 3},
    {"seed_variance": -1},
    {"seed_variance": 0.1, "latents": np.zeros((1, 16, 16, 12), np.float32)},
    {"seed_variance_share": 0.2},
    {"assistant_content": "\ud800"},
    {"noise": "numpy"},
    {"noise": "torch", "latents": np.zeros((1, 16, 16, 12), np.float32)},
    {"variation_seed": 3},
    {"variation_strength": 0.5},
    {"variation_seed": 3, "variation_strength": 0.5, "latents": np.zeros((1, 16, 16, 12), np.float32)},
    {"denoising_start": 0.5},
    {"denoising_start": 0.5, "denoising_end": 0.4},
    {"denoising_end": 0.0},
    {"denoising_end": 0.5, "image": START},
    {"denoising_start": 0.9, "latents": np.zeros((1, 16, 16, 12), np.float32)},
    {"denoising_end": 0.5, "sampler": "unipc"},
    {"denoising_end": 0.5, "step_cache": "first_block"},
    {"denoising_end": 0.5, "guidance_variant": "apg", "apg_momentum": -0.5},
    {"denoising_start": 0.5, "guidance_variant": "cfg_zero_star", "zero_init": True, "latents": LATENTS},
    {"dype": "pi"},
    {"dype": True},
    {"dype": "yarn", "dype_scale": 0},
    {"dype": "yarn", "dype_scale": 101},
    {"dype": "ntk", "dype_exponent": -1},
    {"dype": "vision_yarn", "dype_start_sigma": 0},
    {"dype": "vision_yarn", "dype_start_sigma": 1.5},
    {"dype": "yarn", "dype_start_sigma": 0.5},
    {"dype": "yarn", "dype_base_resolution": 1000},
    {"dype": "yarn", "dype_base_resolution": 0},
    {"dype_scale": 3},
    {"dype_start_sigma": 0.5, "dype_base_resolution": 512},
    {"guidance_interval": [0.5, 1.0], "step_cache": "taylorseer", "num_inference_steps": 20},
    {"guidance_scale": [2.0, 1.0]},
    {"guidance_scale": [2.0, "x", 1e-45]},
    {"guidance_scale": []},
    {"vae_tiling": "on"},
    {"vae_tile_size": 256},
    {"vae_tile_size": 63, "vae_tiling": "blend"},
    {"vae_tiling": "exact", "vae_tile_overlap": 32},
    {"vae_tiling": "blend", "vae_tile_size": 520},
    {"vae_tiling": "blend", "vae_tile_overlap": 20},
    {"vae_tiling": "blend", "vae_tile_size": 64},
    {"guidance_interval": [0.6, 0.4]},
    {"guidance_interval": [0.0, 1.5]},
    {"guidance_interval": [0.95, 1.0]},
    {"guidance_interval": 0.5},
    {"guidance_interval": [0.2, 0.8], "guidance_scale": 0},
    {"guidance_variant": "cfg++"},
    {"guidance_variant": "apg", "guidance_scale": 0},
    {"guidance_variant": "apg", "cfg_normalization": 1.0},
    {"guidance_rescale": 1.5},
    {"guidance_rescale": 0.5, "guidance_scale": 0},
    {"zero_init": True},
    {"zero_init": "yes", "guidance_variant": "cfg_zero_star"},
    {"apg_momentum": -0.5},
    {"apg_momentum": -1.5, "guidance_variant": "apg"},
    {"slg_layers": [3]},
    {"slg_layers": [30], "slg": True},
    {"slg_layers": [], "slg": True},
    {"slg_layers": list(range(30)), "slg": True},
    {"slg": True, "slg_scale": 0.0},
    {"slg": False, "slg_scale": 2.0},
    {"slg": "yes"},
    {"slg": True, "slg_start": 0.5, "slg_stop": 0.4},
    {"slg": True, "num_inference_steps": 1},
    {"slg": True, "step_cache": "first_block"},
    {"slg_scale": -1},
    {"enhance_seed": 3},
    {"original_prompt": ["x", "y"], "enhanced_by": "z"},
    {"nag_scale": 0.5, "guidance_scale": 0},
    {"nag_scale": -5, "guidance_scale": 0},
    {"nag_scale": 5, "nag_tau": 0.9, "nag_alpha": 1.5, "guidance_scale": 0},
    {"nag_scale": 5, "nag_alpha": 0, "guidance_scale": 0},
    {"nag_scale": 5, "nag_sigma_end": 1.5, "guidance_scale": 0},
    {"nag_scale": 5},
    {"nag_scale": 5, "guidance_scale": [0.0, 3.0, *[0.0] * 6]},
    {"nag_tau": 3, "guidance_scale": 0},
    {"nag_scale": 5, "slg": True, "guidance_scale": 0},
    {"nag_scale": 5, "step_cache": "first_block", "guidance_scale": 0},
    {"nag_scale": 5, "guidance_scale": 0, "prompt": None, "prompt_embeds": features(3)},
    {"passes": []},
    {"passes": 3},
    {"passes": "half"},
    {"passes": "[{"},
    {"passes": ["0.5x9"]},
    {"passes": [{"steps": 9}]},
    {"passes": [{"scale": 0.5, "sampler": "heun", "stride": 2}]},
    {"passes": [{"scale": 0, "steps": 1.5, "strength": 0.5}, {"scale": 1.5, "strength": 0, "shift": 0}]},
    {"passes": [{"scale": 0.5, "steps": 1001}, {"scale": 1.0, "strength": 1.5, "guidance_scale": -1}]},
    {"passes": "0.5x9,0.9x9:0.5"},
    {"passes": "0.5:0.4,1.0"},
    {"passes": "0.1x9,1.0x9:1e-17"},
    {"passes": "0.5x9,1.0x9:0.5", "num_inference_steps": 4},
    {"passes": "0.5,1.0", "image": START},
    {"passes": "0.5,1.0", "latents": LATENTS},
    {"passes": "0.5,1.0", "denoising_end": 0.5},
    {"passes": "0.5,1.0", "sigmas": [1.0, 0.5]},
    {"passes": "0.5,1.0", "guidance_scale": [2.0] * 8},
    {"passes": "0.5,1.0", "progressive": 0.5},
    {"passes": "0.5x600,1.0x600:1"},
    {"passes": "0.5x4,1.0x4:0.5", "step_cache": "taylorseer:warmup_steps=4"},
    {"passes": "0.5,1.0", "upscale": "nearest"},
    {"upscale": "bicubic"},
    {"progressive": 1.0},
    {"progressive": 0.5, "num_inference_steps": 1},
    {"progressive": -0.5},
    {"progressive": 0.5, "height": 144, "width": 80},
    {"progressive": 0.5, "image": START},
    {"progressive": 0.5, "latents": LATENTS},
    {"progressive": 0.5, "denoising_end": 0.5},
    {"progressive": 0.5, "step_cache": "taylorseer:warmup_steps=4"},
    {"step_cache": 0.06},
    {"step_cache": "teacache"},
    {"step_cache": "first_block:threshold=x"},
    {"step_cache": "taylorseer"},
    {"strength": 0.5},
    {"strength": 0, "image": START},
    {"strength": 1.5, "image": START},
    {"strength": 1e-17, "image": START},
    {"resize": True},
    {"resize": "yes"},
    {"image": np.zeros((100, 70, 3), np.uint8)},
    {"image": np.zeros((100, 70, 3), np.uint8), "resize": False},
    {"image": START, "height": 256},
    {"image": START, "height": 256, "resize": False},
    {"image": np.zeros((100, 70, 3), np.uint8), "height": 96, "width": 96, "resize": False},
    {"image": "a.png"},
    {"image": np.zeros((128, 96), np.uint8)},
    {"image": START.astype(np.float32)},
    {"prompt": [], "height": 100, "num_inference_steps": 0, "guidance_scale": -1, "output_type": "bmp"},
    {"seed": -1, "shift": 0, "num_images_per_prompt": 65, "max_sequence_length": 0, "cfg_truncation": -1},
]
OTHERS: list[Callable[[], object]] = [
    lambda: make(sigmas=[1.0, 1.0 - 1e-7], shift=100).schedule(SPEC),
    lambda: make(sigmas=[0.5, 2e-38], shift=0.01).schedule(SPEC),
    lambda: make(num_inference_steps=1, shift_terminal=0.1).schedule(SPEC),
    lambda: make(height=4096, width=4096, dynamic_shift=True).schedule(SPEC),
    lambda: make(nag_scale=5, nag_sigma_end=0.9, guidance_scale=0, sigmas=[0.6, 0.3], shift=1).schedule(SPEC),
    lambda: check_token_count(600, 512, "the prompt", 1504, "prompt"),
    lambda: check_token_count(1505, 512, "the negative prompt", 1504, "negative_prompt"),
    lambda: check_token_count(1505, 512, "prompt 0", 1504),
    lambda: image_of_data_url("image", "http://example.com/{field}.png"),
    lambda: image_of_data_url("input_image", "data:image/png;base64,a"),
    lambda: decode_image("image", b""),
    lambda: decode_image("image", b"GIF89a"),
    lambda: decode_image("image", b"a text"),
    lambda: decode_image("input_image", DAMAGED),
    lambda: decode_image("image", encoded(Image.new("RGB", (64, 64))), 100),
    lambda: decode_image("image", encoded(frames()[0], save_all=True, append_images=frames()[1:])),
    lambda: decode_image("image", encoded(Image.new("RGBA", (16, 16)))),
    lambda: picture_pixels("image", Image.new("F", (16, 16))),
    lambda: picture_pixels("image", Image.new("I", (16, 16), 100)),
    lambda: picture_pixels("image", Image.new("I", (16, 16), -5)),
    lambda: starting_image("image", Image.new("RGB", (64, 64)), (16, 16)),
]
WARNINGS: list[dict[str, Any]] = [{"guidance_scale": 0, "negative_prompt": "blurry"}, {"dype": "yarn"}]


def cases() -> list[Callable[[], object]]:
    return [*((lambda arguments=each: make(**arguments)) for each in REQUESTS), *OTHERS]


def block(problem: RequestError | Problem) -> str:
    """What is said, one line each; of HTTP with the field that is blamed."""
    error = problem if isinstance(problem, RequestError) else RequestError(problem)
    told = {"python": (str(error), ""), "command line": (error.said(FLAGS), "")}
    for name, names in (("images", IMAGES), ("responses", RESPONSES)):
        answer = refused(error, names)
        told[name] = (str(answer), f" [{answer.param}]")
    return "".join(f"{who}{param}: {message}\n" for who, (message, param) in told.items())


def written() -> list[str]:
    blocks = []
    for case in cases():
        with pytest.raises(RequestError) as error:
            case()
        blocks.append(block(error.value))
    for arguments in WARNINGS:
        with pytest.warns(RequestWarning) as warned:
            make(**arguments)
        blocks += [block(warning.message.problem) for warning in warned]  # type: ignore[union-attr]
    return blocks


def test_every_message_says_what_it_said() -> None:
    assert written() == [f"{each}\n" for each in GOLDEN.read_text(encoding="utf-8").rstrip("\n").split("\n\n")]


def test_values_are_no_places_for_names() -> None:
    """What a person gives may look like a template."""
    given = "{field} {name[seed]} {say[cpu]} {0} {{"
    with pytest.raises(RequestError) as error:
        make(step_cache=given)
    assert f"got {given!r}" in error.value.said(FLAGS)
    assert Problem.of("seed", "{field}: {text}", text=given).said(FLAGS) == f"--seed: {given}"


def test_a_plain_message_stays_as_it_is() -> None:
    error = RequestError("num_inference_steps {field}")
    assert (str(error), error.said(FLAGS), error.problems[0].field) == (*["num_inference_steps {field}"] * 2, None)
    assert refused(error, IMAGES).param is None
    assert features(LIMITS.max_tokens)[0].shape == (1504, 8)


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(written()), encoding="utf-8")
