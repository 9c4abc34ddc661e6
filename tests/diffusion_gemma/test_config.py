"""A DiffusionGemma's config.json: what is read of it, and every trap as an error with its sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig

from max_zimage.checkpoint.config_reader import ConfigError
from max_zimage.compile.ahead_of_time import DIFFUSION_GEMMA
from max_zimage.diffusion_gemma.config_file import DiffusionGemmaFile, read_config, read_file
from max_zimage.errors import CheckpointError
from max_zimage.graphs.diffusion_gemma.spec import LayerShape

PUBLISHED: Mapping[str, Any] = {
    "architectures": ["DiffusionGemmaForBlockDiffusion"],
    "boi_token_id": 255999,
    "canvas_length": 256,
    "dtype": "bfloat16",
    "eoi_token_id": 258882,
    "image_token_id": 258880,
    "initializer_range": 0.02,
    "model_type": "diffusion_gemma",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2816,
        "initializer_range": 0.02,
        "intermediate_size": 2112,
        "layer_types": [*(["sliding_attention"] * 5), "full_attention"] * 5,
        "max_position_embeddings": 262144,
        "model_type": "diffusion_gemma_text",
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_global_key_value_heads": 2,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "top_k_experts": 8,
        "use_bidirectional_attention": "vision",
        "vocab_size": 262144,
    },
    "tie_word_embeddings": True,
    "transformers_version": "5.12.1",
    "vision_config": {"model_type": "gemma4_vision", "hidden_size": 1152},
}
"""The sizes of the published model in the keys that transformers writes."""


def changed(**changes: object) -> DiffusionGemmaFile:
    """The published configuration, read with some keys changed: of the text part unless `outer_` stands before."""
    config: dict[str, Any] = deepcopy(dict(PUBLISHED))
    for key, value in changes.items():
        place, name = (config, key.removeprefix("outer_")) if key.startswith("outer_") else (config["text_config"], key)
        if value is ...:
            del place[name]
        else:
            place[name] = value
    return read_config(config)


def rope(kind: str, **changes: object) -> dict[str, object]:
    both: dict[str, dict[str, object]] = deepcopy(PUBLISHED["text_config"]["rope_parameters"])
    both[kind] = {key: value for key, value in {**both[kind], **changes}.items() if value is not ...}
    return dict(both)


def test_the_published_model() -> None:
    read = changed()
    assert read.spec == DIFFUSION_GEMMA
    assert (read.image_token_id, read.boi_token_id, read.eoi_token_id) == (258880, 255999, 258882)
    assert read.has_vision
    assert read.image_tokens == {258880, 255999, 258882}
    assert changed(vocab_size=256000).image_tokens == {255999}


def test_what_transformers_fills_in() -> None:
    assert changed(layer_types=...).spec.layer_types == DIFFUSION_GEMMA.layer_types
    assert changed(layer_types=None, num_hidden_layers=4).spec.layer_types == (
        *["sliding_attention"] * 3,
        "full_attention",
    )
    assert changed(rope_parameters=...).spec == DIFFUSION_GEMMA
    assert changed(global_head_dim=0).spec.full.head_dim == 256
    assert changed(global_head_dim=None).spec.full == LayerShape(
        key_heads=2, head_dim=256, has_values=False, rope_theta=1e6, rotated=32
    )
    assert changed(use_bidirectional_attention=None).spec == DIFFUSION_GEMMA
    assert not changed(outer_vision_config=None).has_vision
    assert changed(outer_image_token_id=None).image_token_id is None
    outer = {f"outer_{key}": ... for key in ("image_token_id", "boi_token_id", "eoi_token_id")}
    own = DiffusionGemmaConfig()
    assert changed(**outer).image_tokens == {own.image_token_id, own.boi_token_id, own.eoi_token_id}


def test_a_softcap_is_30_unless_it_is_named() -> None:
    """It is no field of the class, so that a saved file does not hold it."""
    assert changed().spec.softcap == 30.0
    assert changed(final_logit_softcapping=12.5).spec.softcap == 12.5


def test_the_last_layer_is_full_in_any_case(caplog: pytest.LogCaptureFixture) -> None:
    assert changed(layer_types=["sliding_attention"] * 30).spec.layer_types[-2:] == (
        "sliding_attention",
        "full_attention",
    )
    assert "layer_types ends with sliding_attention; the last layer is full_attention" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outer_tie_word_embeddings": False}, "tie_word_embeddings must be true, got false: false undoes the ties"),
        ({"tie_word_embeddings": False}, "text_config.tie_word_embeddings must be true, got false"),
        ({"attention_bias": True}, "attention_bias must be false"),
        ({"hidden_activation": "silu"}, 'hidden_activation must be "gelu_pytorch_tanh"'),
        ({"use_bidirectional_attention": "all"}, 'use_bidirectional_attention must be null or "vision", got'),
        ({"num_attention_heads": 12}, "num_attention_heads 12 must be divisible by num_key_value_heads 8"),
        ({"num_global_key_value_heads": 3}, "must be divisible by num_global_key_value_heads 3"),
        (
            {"num_global_key_value_heads": None},
            "num_global_key_value_heads must be a whole number of at least 1, got null",
        ),
        ({"num_experts": None}, "num_experts must be a whole number of at least 1, got null"),
        ({"top_k_experts": None}, "top_k_experts must be a whole number of at least 1, got null"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size must be a whole number of at least 1, got null"),
        ({"top_k_experts": 129}, "top_k_experts 129 must be at most num_experts 128"),
        ({"num_experts": ...}, "num_experts is missing"),
        ({"head_dim": 255}, "head_dim 255 must be even"),
        ({"global_head_dim": 513}, "global_head_dim 513 must be even"),
        ({"global_head_dim": 6}, "global_head_dim 6 is too small for its partial_rotary_factor"),
        ({"layer_types": ["full_attention"] * 29}, "for each of the 30 layers"),
        ({"layer_types": ["linear_attention"] * 30}, '"sliding_attention" or "full_attention" for each of the 30'),
        (
            {"rope_parameters": {"full_attention": rope("full_attention")["full_attention"]}},
            "rope_parameters must be an object with an object sliding_attention",
        ),
        ({"rope_parameters": rope("sliding_attention", rope_type="linear")}, 'rope_type must be "default"'),
        ({"rope_parameters": rope("full_attention", rope_type="yarn")}, 'rope_type must be "proportional"'),
        ({"rope_parameters": rope("full_attention", partial_rotary_factor=...)}, "partial_rotary_factor is missing"),
        ({"rope_parameters": rope("full_attention", factor=8.0)}, "factor = 8.0 is not a known key"),
        ({"sliding_window": 1}, "sliding_window 1 must be at least 2"),
        ({"vocab_size": 1, "pad_token_id": 1}, "vocab_size 1 must be above pad_token_id 1"),
        ({"outer_canvas_length": 0}, "canvas_length must be a whole number from 1"),
        ({"outer_canvas_length": None}, "canvas_length must be a whole number from 1"),
        ({"outer_image_token_id": -1}, "image_token_id must be a whole number from 0 on, or null, got -1"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping must be a number above 0"),
        ({"enable_moe_block": False}, "enable_moe_block must be true"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers must be 0"),
        ({"some_new_key": 1}, "some_new_key = 1 is not a known key and may change what is computed"),
        ({"outer_some_new_key": 1}, "some_new_key = 1 is not a known key"),
        ({"outer_text_config": None}, "text_config must be an object with the sizes of the text part, got null"),
        ({"outer_model_type": "gemma4"}, "this is a plain Gemma 4, which writes token by token; use a DiffusionGemma"),
        ({"outer_model_type": "gemma3"}, "this is a Gemma 3, which writes token by token"),
        (
            {"outer_model_type": "diffusion_gemma_text"},
            "the text part of a DiffusionGemma's configuration; give the whole",
        ),
        ({"outer_model_type": "llama"}, "this is another model"),
        ({"outer_model_type": ...}, "no configuration of a text model"),
    ],
    ids=lambda each: "+".join(each) if isinstance(each, dict) else "",
)
def test_what_cannot_be_run_is_refused_by_name(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        changed(**changes)
    assert said in str(error.value)
    assert str(error.value).startswith("config.json: ")


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        changed(attention_bias=True, hidden_size=0, outer_canvas_length=0)
    assert len(error.value.problems) == 3


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_file(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    assert read_file(tmp_path).spec == DIFFUSION_GEMMA
