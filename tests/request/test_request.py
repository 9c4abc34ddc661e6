"""What a request may ask for, and what it is told when it may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from max_zimage.errors import RequestError
from max_zimage.request.checks import check_token_count
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.ranges import MAX_SEED

LIMITS = Limits.of(axes_lens=(1536, 512, 512), max_positions=2048, latent_channels=16, caption_dim=8)
DEFAULTS = RequestDefaults(height=128, width=96, num_inference_steps=8, guidance_scale=2.0)


def make(**arguments: Any) -> GenerationRequest:
    arguments.setdefault("prompt", "a red star")
    return GenerationRequest.create(limits=LIMITS, defaults=DEFAULTS, **arguments)


def features(*lengths: int) -> list[np.ndarray]:
    return [np.ones((length, 8), np.float32) for length in lengths]


def test_limits_come_from_the_checkpoint() -> None:
    assert (LIMITS.max_height, LIMITS.max_width, LIMITS.max_tokens) == (8192, 8192, 1504)
    short = Limits.of(axes_lens=(1024, 64, 32), max_positions=100, latent_channels=4, caption_dim=8)
    assert (short.max_height, short.max_width, short.max_tokens, short.default_tokens) == (1024, 512, 100, 100)


def test_what_is_not_said_comes_from_the_checkpoint() -> None:
    request = make()
    assert (request.height, request.width, request.num_inference_steps, request.guidance_scale) == (128, 96, 8, 2.0)
    assert (request.prompts, request.negative_prompts) == (("a red star",), ("",))
    assert (request.cfg_normalization, request.cfg_truncation, request.shift, request.sigmas) == (0.0, 1.0, None, None)
    assert (request.max_sequence_length, request.output_type, request.num_images) == (512, "pil", 1)
    assert request.seed is not None
    assert 0 <= request.seed < 2**32
    assert make().seed != make().seed


def test_explicit_values_are_kept_as_they_are() -> None:
    request = make(
        prompt=["a", "b"],
        negative_prompt=["c", ""],
        height=np.int64(8192),
        width=16,
        num_inference_steps=1000,
        shift=6,
        guidance_scale=np.float32(0.5),
        cfg_normalization=True,
        cfg_truncation=0,
        num_images_per_prompt=3,
        seed=MAX_SEED,
        max_sequence_length=1504,
        output_type="latent",
    )
    assert (request.prompts, request.negative_prompts) == (("a", "b"), ("c", ""))
    assert (request.height, request.width, request.num_inference_steps) == (8192, 16, 1000)
    assert (request.shift, request.guidance_scale, request.cfg_normalization) == (6.0, 0.5, 1.0)
    assert (request.cfg_truncation, request.seed, request.max_sequence_length) == (0.0, MAX_SEED, 1504)
    assert (request.num_prompts, request.num_images, request.output_type) == (2, 6, "latent")


def test_one_negative_prompt_serves_every_prompt_and_the_callers_list_is_left_alone() -> None:
    prompts = ["a", "b"]
    assert make(prompt=prompts, negative_prompt="blurry").negative_prompts == ("blurry", "blurry")
    assert prompts == ["a", "b"]


def test_no_guidance_needs_no_negative_prompt() -> None:
    request = make(guidance_scale=0)
    assert request.negative_prompts == ()
    assert not request.use_guidance
    with pytest.warns(UserWarning, match="the negative prompt has no effect"):
        make(guidance_scale=0, negative_prompt="blurry")


def test_sigmas_name_the_steps() -> None:
    request = make(sigmas=np.asarray([1.0, 0.5, 0.25]))
    assert (request.sigmas, request.num_inference_steps) == ((1.0, 0.5, 0.25), 3)
    assert make(sigmas=[0.5], num_inference_steps=1).num_inference_steps == 1


@pytest.mark.parametrize(("value", "kept"), [(False, 0.0), (True, 1.0), (0.9, 0.9), (2, 2.0)])
def test_cfg_normalization_is_a_factor(value: bool | float, kept: float) -> None:
    assert make(cfg_normalization=value).cfg_normalization == kept


def test_no_truncation_may_be_said_with_none() -> None:
    assert make(cfg_truncation=None).cfg_truncation == 1.0


def test_features_take_the_place_of_prompts() -> None:
    request = make(prompt=None, prompt_embeds=features(3, 40), negative_prompt_embeds=features(5, 5))
    assert (request.prompts, request.negative_prompts, request.num_prompts) == ((), (), 2)
    assert request.prompt_embeds is not None
    assert request.prompt_embeds[1].shape == (40, 8)
    assert make(prompt=None, prompt_embeds=features(3), guidance_scale=0).negative_prompt_embeds is None
    assert make(negative_prompt_embeds=features(7)).negative_prompts == ()


def test_latents_take_the_place_of_a_seed() -> None:
    latents = np.zeros((2, 16, 16, 12), np.float32)
    request = make(latents=latents, num_images_per_prompt=2)
    assert request.latents is latents
    assert request.seed is None


def test_a_seed_beside_latents_moves_the_features() -> None:
    """Which it draws for: a run in two parts can have them in both."""
    latents = np.zeros((1, 16, 16, 12), np.float32)
    assert make(latents=latents, seed=3, seed_variance=0.1).seed == 3
    with pytest.raises(RequestError, match="seed_variance is drawn from the seed; give that beside the latents, or le"):
        make(latents=latents, seed_variance=0.1)
    with pytest.raises(RequestError, match="seed and latents exclude each other"):
        make(latents=latents, seed=3, seed_variance=0.0)


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"height": 1000}, "height", "must be a multiple of 16, got 1000"),
    ({"width": 17}, "width", "must be a multiple of 16, got 17"),
    ({"height": 0}, "height", "must be from 16 to 8192, got 0"),
    ({"height": -128}, "height", "must be from 16 to 8192, got -128"),
    ({"width": 8208}, "width", "must be from 16 to 8192, got 8208"),
    ({"height": 128.0}, "height", "must be a whole number from 16 to 8192, got 128.0 (float)"),
    ({"height": True}, "height", "must be a whole number from 16 to 8192, got True (bool)"),
    ({"width": "128"}, "width", "must be a whole number from 16 to 8192, got '128'"),
    ({"num_inference_steps": 0}, "num_inference_steps", "must be from 1 to 1000, got 0"),
    ({"num_inference_steps": -3}, "num_inference_steps", "must be from 1 to 1000, got -3"),
    ({"num_inference_steps": 10**9}, "num_inference_steps", "must be from 1 to 1000, got 1000000000"),
    ({"num_inference_steps": 8.5}, "num_inference_steps", "must be a whole number from 1 to 1000, got 8.5 (float)"),
    ({"sigmas": []}, "sigmas", "must be a list of 1 to 1000 numbers, got [] (list)"),
    ({"sigmas": 0.5}, "sigmas", "must be a list of 1 to 1000 numbers, got 0.5 (float)"),
    ({"sigmas": [1.0, 0.0]}, "sigmas", "must be above 0, got 0 at position 1"),
    ({"sigmas": [1.5, 0.5]}, "sigmas", "must be at most 1, got 1.5"),
    ({"sigmas": [0.5, 0.5]}, "sigmas", "must fall at every step, got 0.5 and then 0.5 at position 1"),
    ({"sigmas": [0.5, 0.9]}, "sigmas", "must fall at every step, got 0.5 and then 0.9 at position 1"),
    (
        {"sigmas": [1.0, 1.0 - 1e-12]},
        "sigmas",
        "must fall at every step, got 1.0 and then 0.999999999999 at position 1",
    ),
    ({"sigmas": [1.0, float("nan")]}, "sigmas", "must be a finite number of at least 0, got nan"),
    ({"sigmas": [1.0, -0.5]}, "sigmas", "must be a finite number of at least 0, got -0.5"),
    ({"sigmas": [1.0, "x"]}, "sigmas", "must be a finite number of at least 0, got 'x'"),
    (
        {"sigmas": [1.0, 0.5], "num_inference_steps": 8},
        "num_inference_steps",
        "must equal the number of sigmas (2), got 8",
    ),
    ({"shift": 0}, "shift", "must be a finite number above 0, got 0"),
    ({"shift": float("inf")}, "shift", "must be a finite number above 0, got inf"),
    ({"shift": 1e30}, "shift", "must be from 0.01 to 100, got 1e+30"),
    ({"guidance_scale": 1e30}, "guidance_scale", "must be at most 1000, got 1e+30"),
    ({"guidance_scale": -1}, "guidance_scale", "must be a finite number of at least 0, got -1"),
    ({"guidance_scale": float("nan")}, "guidance_scale", "must be a finite number of at least 0, got nan"),
    ({"guidance_scale": True}, "guidance_scale", "must be a finite number of at least 0, got True (bool)"),
    ({"cfg_normalization": -0.1}, "cfg_normalization", "must be a finite number of at least 0, got -0.1"),
    ({"cfg_truncation": float("nan")}, "cfg_truncation", "must be a finite number of at least 0, got nan"),
    ({"cfg_truncation": -1}, "cfg_truncation", "must be a finite number of at least 0, got -1"),
    ({"prompt": []}, "prompt", "must hold 1 to 64 strings, got 0"),
    ({"prompt": ["a"] * 65}, "prompt", "must hold 1 to 64 strings, got 65"),
    ({"prompt": ["a", 5]}, "prompt", "must be a string, got 5 (int)"),
    ({"prompt": 5}, "prompt", "must be a string or a list of strings, got 5 (int)"),
    ({"prompt": "half \ud83d"}, "prompt", "holds half of a surrogate pair at character 5, which is no text"),
    ({"prompt": None}, "prompt", "is missing"),
    ({"prompt_embeds": features(3)}, "prompt", "and prompt_embeds exclude each other, got both"),
    (
        {"prompt": ["a", "b"], "negative_prompt": ["c"]},
        "negative_prompt",
        "must be one string or as many as prompts (2), got 1",
    ),
    ({"negative_prompt": ["a", "b"]}, "negative_prompt", "must be one string or as many as prompts (1), got 2"),
    (
        {"negative_prompt": "a", "negative_prompt_embeds": features(3)},
        "negative_prompt",
        "and negative_prompt_embeds exclude each other, got both",
    ),
    ({"prompt": None, "prompt_embeds": features(3)}, "prompt_embeds", "with guidance need negative_prompt_embeds too"),
    (
        {"prompt": None, "prompt_embeds": features(3, 3), "negative_prompt_embeds": features(3)},
        "negative_prompt_embeds",
        "must hold one array a prompt (2), got 1",
    ),
    (
        {"prompt": None, "prompt_embeds": []},
        "prompt_embeds",
        "must be a list of arrays [tokens, 8], one a prompt, got [] (list)",
    ),
    (
        {"prompt": None, "guidance_scale": 0, "prompt_embeds": [np.ones((3, 9), np.float32)]},
        "prompt_embeds",
        "must be a float32 numpy array [tokens, 8], got shape [3, 9]",
    ),
    (
        {"prompt": None, "guidance_scale": 0, "prompt_embeds": [np.ones((0, 8), np.float32)]},
        "prompt_embeds",
        "must be a float32 numpy array [tokens, 8], got shape [0, 8]",
    ),
    (
        {"prompt": None, "guidance_scale": 0, "prompt_embeds": features(1505)},
        "prompt_embeds",
        "has 1505 tokens, at most 1504 are supported",
    ),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt", "must be from 1 to 64, got 0"),
    (
        {"prompt": ["a", "b"], "num_images_per_prompt": 33},
        None,
        "a request may make 64 pictures, got 2 prompts with 33 each",
    ),
    ({"seed": -1}, "seed", "must be from 0 to 9223372036854775807, got -1; leave it out for a random one"),
    ({"seed": 2**63}, "seed", "must be from 0 to 9223372036854775807, got 9223372036854775808"),
    (
        {"seed": 2**64 - 1, "noise": "torch"},
        "seed",
        "got 18446744073709551615; torch looks at the lowest 32 bits alone, and draws the same for 4294967295",
    ),
    (
        {"seed_variance": 0.1, "seed_variance_share": 0},
        "seed_variance_share",
        "0 moves none of the numbers; set it above",
    ),
    ({"progressive": 0.5, "height": 16}, "height", "where progressive halves it, got 16; the nearest is 32"),
    ({"seed": "7"}, "seed", "must be a whole number from 0 to 9223372036854775807, got '7'"),
    ({"max_sequence_length": 1505}, "max_sequence_length", "must be from 1 to 1504, got 1505"),
    ({"output_type": "pt"}, "output_type", "must be one of pil, np, latent, got 'pt'"),
    (
        {"latents": np.zeros((1, 16, 8, 8), np.float32)},
        "latents",
        "[images, channels, height / 8, width / 8] = [1, 16, 16, 12], got shape [1, 16, 8, 8]",
    ),
    (
        {"latents": np.zeros((1, 16, 16, 12))},
        "latents",
        "[images, channels, height / 8, width / 8] = [1, 16, 16, 12], got float64",
    ),
    (
        {"latents": np.full((1, 16, 16, 12), np.nan, np.float32)},
        "latents",
        "[images, channels, height / 8, width / 8] = [1, 16, 16, 12] of finite values, got 3072 that are not",
    ),
    (
        {"latents": [0.0]},
        "latents",
        "[images, channels, height / 8, width / 8] = [1, 16, 16, 12], got list",
    ),
    ({"latents": np.zeros((1, 16, 16, 12), np.float32), "seed": 1}, "seed", "and latents exclude each other, got both"),
]


@pytest.mark.parametrize(("arguments", "field", "rule"), BAD)
def test_a_bad_argument_is_refused_with_the_rule(arguments: dict[str, Any], field: str | None, rule: str) -> None:
    """Whole messages are in test_messages_golden.py."""
    with pytest.raises(RequestError) as error:
        make(**arguments)
    (problem,) = error.value.problems
    assert problem.field == field
    assert rule in str(error.value)


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(RequestError) as error:
        make(prompt=[], height=100, num_inference_steps=0, guidance_scale=-1, output_type="bmp")
    blamed = [problem.field for problem in error.value.problems]
    assert blamed == ["prompt", "guidance_scale", "height", "num_inference_steps", "output_type"]
    assert str(error.value).startswith("the request has 5 problems:\n- prompt must hold 1 to 64 strings, got 0\n- ")


@pytest.mark.parametrize(
    ("count", "limit", "message"),
    [
        (
            600,
            512,
            "prompt 0 has 600 tokens, at most 512 are allowed; shorten it or raise max_sequence_length (up to 1504)",
        ),
        (1505, 512, "prompt 0 has 1505 tokens, at most 512 are allowed; shorten it"),
        (1505, 1504, "prompt 0 has 1505 tokens, at most 1504 are allowed; shorten it"),
    ],
)
def test_a_long_prompt_is_refused_not_cut(count: int, limit: int, message: str) -> None:
    with pytest.raises(RequestError) as error:
        check_token_count(count, limit, "prompt 0", 1504)
    assert str(error.value) == message
    check_token_count(limit, limit, "prompt 0", 1504)


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        make().height = 64  # type: ignore[misc]
