"""Configuration files: profiles, what stands above what, what is refused, and what requests leave of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from max_zimage.request.configuration.configuration import default_file, read_configuration
from max_zimage.request.configuration.profiles import ConfigurationError
from tests.request.configurations import Read, request_of
from tests.request.configurations import read as read

IMAGE = np.zeros((128, 96, 3), np.uint8)

PROFILES = """
[default.generation]
height = 64
num_inference_steps = 9
[default.encoder]
quantization = "8bit"
[rtx4090]
model_path = "here"
[rtx4090.generation]
height = 96
[rtx4090.encoder]
quantization = "none"
[empty]
"""


def test_profiles_inherit_from_the_default(read: Read) -> None:
    assert read(PROFILES).fields == {"height": 64, "num_inference_steps": 9}
    assert read(PROFILES).start == {"quantize": "text_encoder=int8"}
    named = read(PROFILES, "rtx4090")
    assert (named.fields, named.start) == ({"height": 96, "num_inference_steps": 9}, {"model": "here"})
    assert read(PROFILES, "empty").fields == read(PROFILES, "default").fields == read(PROFILES).fields
    with pytest.raises(ConfigurationError, match="has no profile 'rtx3090'; it has default, rtx4090, empty"):
        read(PROFILES, "rtx3090")
    # Keys above all tables, and sections of no profile, are those of the default one.
    assert (
        read('quantize = "transformer=q4"\n[generation]\nheight = 32').settled.start["quantize"].value
        == "transformer=q4"
    )


def test_the_environment_stands_above_the_file(read: Read) -> None:
    said = {
        "MAX_ZIMAGE_GENERATION_HEIGHT": "80",
        "MAX_ZIMAGE_SLG_ENABLED": "true",
        "MAX_ZIMAGE_QUANTIZE": "transformer=q4",
    }
    found = read(PROFILES, "rtx4090", MAX_ZIMAGE_CACHE="/x", MAX_ZIMAGE_SERVER_PROCESS="1", **said)
    assert found.fields == {"height": 80, "num_inference_steps": 9, "slg": True}
    assert found.start["quantize"] == "transformer=q4"
    origins = {name: setting.name for name, setting in found.settled.fields.items()}
    assert origins["height"] == "MAX_ZIMAGE_GENERATION_HEIGHT"
    assert origins["num_inference_steps"].endswith("config.toml line 4: [generation] num_inference_steps")
    with pytest.raises(
        ConfigurationError, match="MAX_ZIMAGE_GENERATION_HEIGHT_PX stands for no key; the nearest is MAX_ZIM"
    ):
        read("", MAX_ZIMAGE_GENERATION_HEIGHT_PX="64")
    with pytest.raises(ConfigurationError, match="MAX_ZIMAGE_GENERATION_HEIGHT must be a multiple of 16, got 70"):
        read("", MAX_ZIMAGE_GENERATION_HEIGHT="70")


REFUSED = [
    ("[generations]\nheight = 64", "profile [generations] has no key height; is the section [generation] meant?"),
    ("[default.generations]\nheight = 64", "there is no section [default.generations]; the nearest is generation"),
    ("[generation]\nheight_px = 64", "line 2: [generation] has no key height_px; the nearest is height"),
    ("modelpath = 'x'", "line 1: the top has no key modelpath; the nearest is model_path"),
    ("[generation]\nheight = 100", "line 2: [generation] height must be a multiple of 16, got 100"),
    ("[generation]\nheight = '64'", "[generation] height must be a whole number from 16 to 16777216, got '64'"),
    ("[slg]\nenabled = 1", "[slg] enabled must be true or false"),
    ("[encoder]\nload_in_8bit = 'yes'", "[encoder] load_in_8bit must be true or false, got 'yes'"),
    ("[encoder]\ntorch_dtype = 'float16'", "float16 is not computed here"),
    ("[encoder]\ntorch_dtype = 'float32'\n[pipeline]\ntorch_dtype = 'bfloat16'", "all components run in one dtype"),
    ("[encoder]\nquantization = '3bit'", "must be one of none, 4bit, 8bit, int8_dynamic, int8, q4, got '3bit'"),
    ("[scheduler]\nshift = 2.0\n[generation]\nshift = 2.0", "are one setting; leave one out"),
    ("[lora]\npaths = ['a']\nscales = [1.0, 2.0]", "must hold one scale for each of the 1 paths, got 2"),
    ("[lora]\nscales = [1.0]", "scales of no adapter"),
    ("[server]\nport = 'x'", "[server] port must be a whole number"),
    ("[server]\nallow_host = ['a b']", "[server] allow_host"),
    ("[generation]\nsampler = 'dpm'", "[generation] sampler must be one of"),
    ("[generation]\nheight = 64\nheight = 32", "is no TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_is_refused(text: str, said: str, read: Read) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    assert said in str(caught.value)


def test_everything_that_is_wrong_is_told_together(read: Read) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("[generation]\nheight_px = 1\nwidth = 7\n[slg]\nscale = -1", MAX_ZIMAGE_SLG_STOP="2")
    assert str(caught.value).startswith("4 things are wrong:\n- ")


def test_what_does_not_go_together_is_told_with_its_place(read: Read) -> None:
    found = read('[generation]\nguidance_scale = 0\nguidance_variant = "apg"')
    with pytest.raises(ConfigurationError, match=r"line 3: \[generation\] guidance_variant changes guidance"):
        request_of(found)


def test_sections_that_are_off_wait(read: Read) -> None:
    text = '[slg]\nenabled = false\nscale = 3.0\nstart = 0.2\n[dype]\nmethod = "yarn"\ndype_scale = 3.0\n[pytorch]\n'
    found = read(text + "tiled_vae = false\ntile_size = 256")
    assert [note.partition("waits")[2] for note in found.settled.notes] == [": [dype] enabled is not true"]
    plain = request_of(found)
    assert (plain.slg_scale, plain.slg_start, plain.dype, plain.dype_scale, plain.vae_tile_size) == (
        0,
        0.05,
        "off",
        2,
        512,
    )
    asked = request_of(found, slg=True, dype="yarn", vae_tiling="exact")
    assert (asked.slg_scale, asked.slg_start, asked.dype, asked.dype_scale, asked.vae_tile_size) == (
        3,
        0.2,
        "yarn",
        3,
        256,
    )


LEFT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ('guidance_variant = "apg"\napg_eta = 0.5', {"guidance_scale": 0}, {"guidance_variant": "cfg", "apg_eta": 1.0}),
    ('guidance_variant = "apg"\napg_eta = 0.5', {"guidance_variant": "cfg_zero_star"}, {"apg_eta": 1.0}),
    ('guidance_variant = "apg"', {"cfg_normalization": 1.0}, {"guidance_variant": "cfg"}),
    ("cfg_normalization = 1.0", {"guidance_variant": "apg"}, {"cfg_normalization": 0.0}),
    ("slg = true\nslg_scale = 3.0\nslg_start = 0.1", {"slg": False}, {"slg_scale": 0.0, "slg_start": 0.05}),
    ("slg = true\nslg_scale = 3.0\nslg_start = 0.1", {"slg_scale": 1.5}, {"slg_scale": 1.5, "slg_start": 0.1}),
    ("guidance_scale = 0\nnag_scale = 5.0\nnag_tau = 3.0", {"guidance_scale": 2.0}, {"nag_scale": 0.0, "nag_tau": 2.5}),
    ('passes = "0.5x4,1.0x4:0.5"', {"num_inference_steps": 3}, {"passes": None, "num_inference_steps": 3}),
    ("guidance_scale = [1.0, 2.0]\nnum_inference_steps = 2", {"num_inference_steps": 3}, {"guidance_scale": 2.0}),
    ("sigmas = [1.0, 0.5]", {"num_inference_steps": 3}, {"sigmas": None, "num_inference_steps": 3}),
    ("sigmas = [1.0, 0.5]", {"sigma_shape": "karras"}, {"sigmas": None, "sigma_shape": "karras"}),
    ("sigmas = [1.0, 0.5]", {"passes": "0.5x4,1.0x4:0.5"}, {"sigmas": None}),
    ("sigmas = [1.0, 0.5]", {"sigmas": [1.0, 0.6, 0.3]}, {"sigmas": (1.0, 0.6, 0.3), "num_inference_steps": 3}),
    ("num_inference_steps = 7", {"sigmas": [1.0, 0.5]}, {"sigmas": (1.0, 0.5), "num_inference_steps": 2}),
    ("dynamic_shift = true", {"shift": 2.0}, {"dynamic_shift": None, "shift": 2.0}),
    ("shift = 2.0\nshift_terminal = 0.1", {"dynamic_shift": True}, {"dynamic_shift": True, "shift": None}),
    ('sigma_shape = "karras"', {"sigmas": [1.0, 0.5]}, {"sigmas": (1.0, 0.5), "sigma_shape": "linear"}),
    ('passes = "0.5x4,1.0x4:0.5"', {"sigmas": [1.0, 0.5]}, {"passes": None, "sigmas": (1.0, 0.5)}),
    (
        "guidance_scale = [1.0, 2.0]\nnum_inference_steps = 2",
        {"sigmas": [1.0, 0.5, 0.2]},
        {"guidance_scale": 2.0, "sigmas": (1.0, 0.5, 0.2)},
    ),
    ("strength = 0.5", {}, {"strength": 1.0}),
    ("strength = 0.5", {"image": IMAGE}, {"strength": 0.5}),
    ("height = 64\nwidth = 64", {"image": IMAGE}, {"height": 128, "width": 96}),
    ('system_prompt = "a"', {"template": "portrait"}, {}),
    ("seed = 9", {"seed": None, "latents": np.zeros((1, 16, 16, 12), np.float32)}, {"seed": None}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "given", "held"), LEFT)
def test_what_a_request_says_comes_first(text: str, given: dict[str, Any], held: dict[str, Any], read: Read) -> None:
    found = request_of(read(f"[generation]\n{text}"), **given)
    assert {name: getattr(found, name) for name in held} == held
    assert found.system_prompt != "a"


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text("[generation]\nheight = 64")  # never in the working folder
    place = tmp_path / "x" / "max-zimage" / "config.toml"
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "x"), "HOME": "/h"}
    assert default_file(environment) == place
    assert default_file({"HOME": "/h"}) == default_file({"HOME": "/h", "XDG_CONFIG_HOME": "x"})
    assert str(default_file({"HOME": "/h"})) == "/h/.config/max-zimage/config.toml"
    assert read_configuration(environment=environment).file is None
    with pytest.raises(ConfigurationError, match="there is no profile 'a'"):
        read_configuration(None, "a", environment=environment)
    place.parent.mkdir(parents=True)
    place.write_text("[generation]\nheight = 96")
    found = read_configuration(environment=environment)
    assert (found.file, found.fields) == (place, {"height": 96})
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        read_configuration(tmp_path / "none.toml", environment=environment)


def test_the_rewriters_address_waits_for_use_api(read: Read) -> None:
    """llm-dit asks an API only where use_api is true, and writes with the text encoder's own model elsewhere."""
    api = 'api_url = "http://mac:8080/"\napi_model = "Qwen3-4B"\ntemperature = 1\n'
    for text in ("", "use_api = false\n"):
        found = read(f"[rewriter]\n{api}{text}")
        assert found.start == {"enhancer": {"temperature": 1}}
        assert [each.partition(": ")[2] for each in found.settled.notes] == [
            f"[rewriter] {name} waits: [rewriter] use_api is not true" for name in ("api_url", "api_model")
        ]
    on = {"model": "http://mac:8080/v1", "api_model": "Qwen3-4B", "temperature": 1}
    found = read(f"[rewriter]\n{api}[api.rewriter]\nuse_api = true", "api")
    assert (found.start, found.settled.notes) == ({"enhancer": on}, ())
    # What waits stands above nothing.
    below = read(f'[enhancer]\nmodel = "embedded"\n[big.rewriter]\n{api}', "big")
    assert below.start == {"enhancer": {"model": "embedded", "temperature": 1}}
    above = read(f"[rewriter]\nuse_api = true\n{api}", MAX_ZIMAGE_ENHANCER_MODEL="embedded")
    assert above.start["enhancer"]["model"] == "embedded"
    for text, message in (
        ("[rewriter]\nuse_api = true", "use_api asks for an API and there is none; give [rewriter] api_url"),
        ("[rewriter]\ntop_k = 3\n[enhancer]\ntop_k = 3", "are one setting; leave one out"),
        ('[rewriter]\nuse_api = true\napi_url = "mac:8080"', "api_url must be an http(s) address, got 'mac:8080'"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            read(text)
        assert message in str(caught.value)
    assert read("[rewriter]\nmin_p = 0.1\nvl_enabled = true").settled.notes == (
        "[rewriter] min_p is left aside: an enhancer draws words by temperature, top_p and top_k alone; leave it out",
        "[rewriter] vl_enabled is left aside: prompts are written out from text alone, not from pictures (VL); "
        "leave it out",
    )
