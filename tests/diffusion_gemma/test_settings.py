"""The numbers of a text: whose they are, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

from max_zimage.diffusion_gemma.settings import TextSettings, read_defaults
from max_zimage.errors import CheckpointError, RequestError

VOCABULARY = 100


def written(folder: Path, generation: dict[str, Any] | None, **text: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"text_config": text}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_defaults_are_those_of_transformers() -> None:
    theirs = DiffusionGemmaGenerationConfig._get_default_generation_params()
    ours = TextSettings()
    assert ours.entropy_bound == theirs.pop("sampler_config").entropy_bound
    assert ours.num_denoising_steps == theirs.pop("max_denoising_steps")
    assert {name: getattr(ours, name) for name in theirs} == theirs


def test_a_request_goes_before_the_checkpoint_and_that_before_the_model(tmp_path: Path) -> None:
    file = {
        "max_new_tokens": 16,
        "max_denoising_steps": 7,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.3},
        "t_max": None,
        "stability_threshold": 0,
        "cache_implementation": None,
        "eos_token_id": [3, 4],
        "pad_token_id": 5,
        "transformers_version": "5.12.1",
    }
    found = read_defaults(written(tmp_path, file), VOCABULARY)
    assert found.settings == TextSettings(
        max_new_tokens=16, num_denoising_steps=7, entropy_bound=0.3, stability_threshold=0
    )
    assert (found.ends, found.pad) == ((3, 4), 5)
    asked = found.settings.asked(num_denoising_steps=9, t_min=None, t_max=1)
    assert (asked.num_denoising_steps, asked.t_max, asked.t_min, asked.entropy_bound) == (9, 1.0, 0.4, 0.3)


def test_what_the_file_leaves_out_is_in_the_configuration(tmp_path: Path) -> None:
    found = read_defaults(written(tmp_path, None, eos_token_id=9, pad_token_id=8), VOCABULARY)
    assert (found.settings, found.ends, found.pad) == (TextSettings(), (9,), 8)


def test_null_says_nothing(tmp_path: Path) -> None:
    """Neither in the file, whose token is then the configuration's, nor there, where the class's own is left."""
    file = {"eos_token_id": None, "pad_token_id": None}
    found = read_defaults(written(tmp_path, file, eos_token_id=9, pad_token_id=None), VOCABULARY)
    assert (found.ends, found.pad) == ((9,), 0)
    assert read_defaults(written(tmp_path, file, eos_token_id=None), VOCABULARY).ends == (1,)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be from 1 to 1000000, got 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number from 1 to 1000000, got 1.5"),
        ({"num_denoising_steps": True}, "num_denoising_steps must be a whole number from 1 to 100000, got True"),
        ({"num_denoising_steps": 0}, "num_denoising_steps must be from 1 to 100000, got 0"),
        ({"stability_threshold": -1}, "stability_threshold must be from 0 to 100000, got -1"),
        ({"entropy_bound": 0}, "entropy_bound must be a finite number above 0, got 0"),
        ({"entropy_bound": float("nan")}, "entropy_bound must be a finite number above 0, got nan"),
        ({"confidence_threshold": "low"}, "confidence_threshold must be a finite number above 0, got 'low'"),
        ({"t_max": float("inf")}, "t_max must be a finite number above 0, got inf"),
        ({"t_min": -0.1}, "t_min must be a finite number of at least 0, got -0.1"),
        ({"t_min": 0.8}, "t_max must be above t_min, got 0.8 and 0.8; temperatures go down"),
        ({"t_max": 1e-50, "t_min": 0}, "t_max must be from 1.18e-38 to 3.4e+38 in float32, got 1e-50"),
        ({"t_max": 1e39}, "t_max must be from 1.18e-38 to 3.4e+38 in float32, got 1e+39"),
        ({"t_min": 1e-40}, "t_min must be 0, or from 1.18e-38 to 3.4e+38 in float32, got 1e-40"),
        ({"t_max": 2e-37, "t_min": 0}, "t_max 2e-37 and t_min 0 make 4.17e-39 of the last step's temperature"),
        ({"t_max": 0.3}, "t_max must be above t_min, got 0.3 and 0.4; temperatures go down"),
    ],
)
def test_numbers_out_of_range(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refused:
        TextSettings().asked(**numbers)
    assert str(refused.value).startswith(message)


def test_all_that_is_wrong_is_said_together() -> None:
    with pytest.raises(RequestError, match="the request has 2 problems") as refused:
        TextSettings().asked(t_max=0, max_new_tokens=-1)
    assert {problem.field for problem in refused.value.problems} == {"t_max", "max_new_tokens"}
    with pytest.raises(RequestError, match="the request has 2 problems"):
        TextSettings().asked(t_max=0.1, max_new_tokens=-1)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"temperature": 0.7}, "temperature is of models that write token by token, and nothing here would heed it"),
        ({"steps": 3}, "steps is not known, and nothing here would heed it; DiffusionGemma's keys are"),
        ({"t_min": -1}, "generation_config.json: t_min must be a finite number of at least 0, got -1; correct it"),
        ({"sampler_config": {"_cls_name": "Other"}}, "sampler_config must be an EntropyBoundSamplerConfig"),
        ({"eos_token_id": 100}, "eos_token_id must be a token from 0 to 99, or several, got 100"),
        ({"eos_token_id": []}, "eos_token_id must be a token from 0 to 99, or several, got []"),
        ({"pad_token_id": True}, "pad_token_id must be a token from 0 to 99, or several, got true"),
    ],
)
def test_files_that_say_what_cannot_be(tmp_path: Path, file: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        read_defaults(written(tmp_path, file), VOCABULARY)
    assert message in str(refused.value)
