"""The configuration file: every key does something, or is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from max_zimage.cli.config_example import example_of, example_text
from max_zimage.graphs.model.attention_backends import BACKENDS
from max_zimage.pipeline.configured import with_options
from max_zimage.request import wire
from max_zimage.request.configuration.key import Key
from max_zimage.request.configuration.keys import PER_PICTURE, keys_of
from max_zimage.request.configuration.profiles import ConfigurationError
from max_zimage.request.configuration.values import ATTENTION, OTHER_ATTENTION, TOKENS_KEPT
from max_zimage.request.fields import ROWS
from tests.request.configurations import SERVER, Read, request_of
from tests.request.configurations import read as read
from tests.request.test_request import LIMITS

KEYS = keys_of(SERVER)
IMAGE = np.zeros((128, 96, 3), np.uint8)

NEEDED = {
    ("generation", "slg_layers"): "slg_scale = 2.0",
    ("generation", "slg_start"): "slg_scale = 2.0",
    ("generation", "slg_stop"): "slg_scale = 2.0",
    **{("slg", name): "enabled = true" for name in ("scale", "layers", "start", "stop")},
    **{("generation", f"dype_{name}"): 'dype = "vision_yarn"' for name in ("scale", "exponent", "start_sigma")},
    ("generation", "dype_base_resolution"): 'dype = "vision_yarn"',
    **{("dype", name): "enabled = true" for name in ("method", "dype_scale", "dype_exponent", "dype_start_sigma")},
    ("dype", "base_resolution"): "enabled = true",
    ("pytorch", "tile_size"): "tiled_vae = true",
    ("pytorch", "tile_overlap"): "tiled_vae = true",
    ("pytorch", "cache_size"): "embedding_cache = true",
    ("generation", "vae_tile_size"): 'vae_tiling = "blend"',
    ("generation", "vae_tile_overlap"): 'vae_tiling = "blend"',
    ("generation", "zero_init"): 'guidance_variant = "cfg_zero_star"',
    **{("generation", f"apg_{name}"): 'guidance_variant = "apg"' for name in ("eta", "momentum", "norm_threshold")},
    ("generation", "nag_scale"): "guidance_scale = 0.0",
    **{
        ("generation", f"nag_{name}"): "guidance_scale = 0.0\nnag_scale = 4.0" for name in ("tau", "alpha", "sigma_end")
    },
    ("generation", "variation_seed"): "variation_strength = 0.3",
    ("generation", "variation_strength"): "variation_seed = 3",
    ("generation", "seed_variance_share"): "seed_variance = 0.4",
    ("generation", "enhance_seed"): "enhance = true",
    ("generation", "upscale"): 'passes = "0.5x4,1.0x4:0.5"',
    ("lora", "scales"): 'paths = ["a.safetensors"]',
    ("rewriter", "use_api"): 'api_url = "http://mac:8080"',
    ("rewriter", "api_url"): "use_api = true",
    ("rewriter", "api_model"): 'use_api = true\napi_url = "http://mac:8080"',
}
"""Keys that mean something beside another one of their section -> that one."""

BOTH = ("variation_seed", "variation_strength")

STARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("", "model_path"): {"model": "Tongyi-MAI/Z-Image-Turbo"},
    ("", "templates_dir"): {"templates_dir": str(Path("~/templates").expanduser())},
    ("", "quantize"): {"quantize": "transformer=int8"},
    ("", "weight_path"): {"weight_path": ["transformer/model.safetensors"]},
    ("encoder", "torch_dtype"): {"dtype": "float32"},
    ("encoder", "quantization"): {"quantize": "text_encoder=int8"},
    ("encoder", "load_in_8bit"): {"quantize": "text_encoder=int8"},
    ("encoder", "load_in_4bit"): {"quantize": "text_encoder=q4"},
    ("encoder", "device"): {"encoder_device": "cpu"},
    ("encoder", "cpu_offload"): {"cpu_offload": True},
    ("pipeline", "device"): {"device": "cpu"},
    ("pipeline", "dit_device"): {"dit_device": "cpu"},
    ("pipeline", "vae_device"): {"vae_device": "cpu"},
    ("pipeline", "devices"): {"devices": "gpu:0,1"},
    ("pipeline", "split"): {"split": "tokens"},
    ("pipeline", "placement"): {"placement": "sequential"},
    ("pipeline", "max_memory"): {"max_memory": "8GiB"},
    ("pipeline", "enable_model_cpu_offload"): {"cpu_offload": True},
    ("pipeline", "enable_sequential_cpu_offload"): {"cpu_offload": True},
    ("optimization", "cpu_offload"): {"cpu_offload": True},
    ("pipeline", "torch_dtype"): {"dtype": "float32"},
    ("pytorch", "embedding_cache"): {"embedding_cache_bytes": 100 * TOKENS_KEPT},
    ("pytorch", "cache_size"): {"embedding_cache_bytes": 100 * TOKENS_KEPT},
    ("generation", "no_metadata"): {"no_metadata": True},
    ("pytorch", "attention_backend"): {"attention_backend": "plain"},
    ("enhancer", "model"): {"enhancer": {"model": "http://localhost:8080/v1"}},
    ("enhancer", "template"): {"enhancer": {"template": str(Path("~/enhance.md").expanduser())}},
    ("enhancer", "api_model"): {"enhancer": {"api_model": "qwen3-32b"}},
    ("enhancer", "key_file"): {"enhancer": {"key_file": str(Path("~/key").expanduser())}},
    ("enhancer", "seconds"): {"enhancer": {"seconds": 30.0}},
    ("enhancer", "max_tokens"): {"enhancer": {"max_tokens": 300}},
    ("enhancer", "temperature"): {"enhancer": {"temperature": 0.3}},
    ("enhancer", "top_p"): {"enhancer": {"top_p": 0.9}},
    ("enhancer", "top_k"): {"enhancer": {"top_k": 40}},
    ("rewriter", "use_api"): {"enhancer": {"model": "http://mac:8080/v1"}},
    ("rewriter", "api_url"): {"enhancer": {"model": "http://localhost:8080/v1"}},
    ("rewriter", "api_model"): {"enhancer": {"model": "http://mac:8080/v1", "api_model": "qwen3-32b"}},
    ("rewriter", "timeout"): {"enhancer": {"seconds": 30.0}},
    ("rewriter", "max_tokens"): {"enhancer": {"max_tokens": 300}},
    ("rewriter", "temperature"): {"enhancer": {"temperature": 0.3}},
    ("rewriter", "top_p"): {"enhancer": {"top_p": 0.9}},
    ("rewriter", "top_k"): {"enhancer": {"top_k": 40}},
    ("lora", "paths"): {"loras": [("style.safetensors", 1.0)]},
    ("lora", "scales"): {"loras": [("a.safetensors", 0.8)]},
}


def text_of(section: str, *lines: str) -> str:
    return "\n".join([f"[{section}]" if section else "[default]", *lines])


def of_way(*ways: str) -> list[Any]:
    return [pytest.param(key, id=key.spelled) for key in KEYS.values() if key.way in ways]


@pytest.mark.parametrize("key", of_way("field"))
def test_every_key_of_a_field_changes_the_request(key: Key, read: Read) -> None:
    needed = NEEDED.get((key.section, key.name), "")
    line = f"{key.name} = {example_of(key)}"
    if key.target == "step_cache":
        assert with_options(None, {"step_cache": None}, read(text_of(key.section, line)))[1] == {
            "step_cache": "first_block"
        }
        return
    given: dict[str, Any] = {"image": IMAGE} if key.target == "strength" else {}
    before = "" if key.name in BOTH else needed  # which is refused by itself
    without = request_of(read(text_of(key.section, before)), **given)
    configured = read(text_of(key.section, needed, line))
    changed = request_of(configured, **given | ({"seed": None} if key.target == "seed" else {}))
    assert wire.to_text(changed) != wire.to_text(without)
    if key.target not in ("slg", "template", "negative_prompt", "passes", "dype_enabled", "dype_method"):
        held = getattr(changed, ROWS[key.target].attribute)
        assert held == ROWS[key.target].kind.check(key.target, configured.fields[key.target], LIMITS)


@pytest.mark.parametrize("key", of_way("start"))
def test_every_key_of_the_start_changes_it(key: Key, read: Read) -> None:
    text = text_of(key.section, NEEDED.get((key.section, key.name), ""), f"{key.name} = {example_of(key)}")
    assert read(text).start == STARTS[key.section, key.name]


@pytest.mark.parametrize("key", of_way("idle", "absent"))
def test_keys_without_a_meaning_are_answered(key: Key, read: Read) -> None:
    on = {bool: "true", float: "0.7", str: '"other"'}[key.types[0]] if key.types else "true"
    on = "false" if key.off == (True,) else on
    if key.way == "absent" and key.off is not None:
        with pytest.raises(ConfigurationError) as caught:
            read(text_of(key.section, f"{key.name} = {on}"))
        assert f"[{key.section}] {key.name} asks for what there is not: {key.sentence}" in str(caught.value)
        off = {False: "false", "": '""'}[key.off[0]]
        assert read(text_of(key.section, f"{key.name} = {off}")).settled.notes == ()
        return
    (note,) = [each for each in read(text_of(key.section, f"{key.name} = {on}")).settled.notes if "waits" not in each]
    assert note == key.sentence
    assert key.off is None or "has no effect on MAX: " in note


@pytest.mark.parametrize("name", OTHER_ATTENTION)
def test_attention_of_llm_dit_is_answered(name: str, read: Read) -> None:
    found = read(f'[pytorch]\nattention_backend = "{name}"')
    assert found.start == {"attention_backend": "auto"}
    (note,) = found.settled.notes
    assert note.startswith("[pytorch] attention_backend as flash_attn_2 or ")
    assert "has no effect on MAX: attention is MAX's" in note
    with pytest.raises(ConfigurationError, match="attention_backend must be one of auto, max_zimage, max, plain"):
        read('[pytorch]\nattention_backend = "fast"')


def test_the_ways_to_compute_attention_are_those_of_the_graphs() -> None:
    assert ("auto", *BACKENDS) == ATTENTION


def test_every_field_with_a_flag_has_a_key_or_is_of_one_picture() -> None:
    named = {key.target for key in KEYS.values() if key.section == "generation"}
    assert {name for name, row in ROWS.items() if row.flag} == named & ROWS.keys() | (
        PER_PICTURE & {name for name, row in ROWS.items() if row.flag}
    )


def test_the_example_is_a_file_that_changes_nothing(read: Read) -> None:
    text = example_text(KEYS)
    found = read(text)
    assert (found.fields, found.start, found.settled.server, found.settled.notes) == ({}, {}, {}, ())
    assert all(f"# {key.name} = " in text for key in KEYS.values() if key.way not in ("idle", "absent"))
