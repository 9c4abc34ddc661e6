"""The configuration file: every key does something or is answered, profiles, precedence, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from max_zimage.cli.config_example import example_of, example_text
from max_zimage.cli.given import command_of
from max_zimage.cli.main import _parser
from max_zimage.cli.server_keys import server_keys
from max_zimage.pipeline.configured import configured_defaults, with_options
from max_zimage.request import wire
from max_zimage.request.configuration.configuration import Configuration, default_file, read_configuration
from max_zimage.request.configuration.key import Key
from max_zimage.request.configuration.keys import PER_PICTURE, keys_of
from max_zimage.request.configuration.profiles import ConfigurationError
from max_zimage.request.configuration.values import TOKENS_KEPT
from max_zimage.request.fields import ROWS
from max_zimage.request.request import GenerationRequest
from tests.request.test_request import DEFAULTS, LIMITS

SERVER = server_keys(command_of(_parser(), "serve"))
KEYS = keys_of(SERVER)
IMAGE = np.zeros((128, 96, 3), np.uint8)
Read = Callable[..., Configuration]

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
    ("generation", "upscale"): 'passes = "0.5x4,1.0x4:0.5"',
    ("lora", "scales"): 'paths = ["a.safetensors"]',
}
"""Keys that mean something beside another one of their section -> that one."""

STARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("", "model_path"): {"model": "Tongyi-MAI/Z-Image-Turbo"},
    ("", "templates_dir"): {"templates_dir": str(Path("~/templates").expanduser())},
    ("", "quantize"): {"quantize": "transformer=int8"},
    ("", "weight_path"): {"weight_path": ["transformer/model.safetensors"]},
    ("encoder", "torch_dtype"): {"dtype": "float32"},
    ("encoder", "quantization"): {"quantize": "text_encoder=int8"},
    ("encoder", "load_in_8bit"): {"quantize": "text_encoder=int8"},
    ("encoder", "load_in_4bit"): {"quantize": "text_encoder=q4"},
    ("pipeline", "device"): {"device": "cpu"},
    ("pipeline", "torch_dtype"): {"dtype": "float32"},
    ("pytorch", "embedding_cache"): {"embedding_cache_bytes": 100 * TOKENS_KEPT},
    ("pytorch", "cache_size"): {"embedding_cache_bytes": 100 * TOKENS_KEPT},
    ("lora", "paths"): {"loras": [("style.safetensors", 1.0)]},
    ("lora", "scales"): {"loras": [("a.safetensors", 0.8)]},
}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a file of this text, with no environment unless one is given."""

    def read(text: str, profile: str | None = None, **environment: str) -> Configuration:
        file = tmp_path / "config.toml"
        file.write_text(text)
        return read_configuration(file, profile, server=SERVER, environment=environment)

    return read


def request_of(configuration: Configuration, **given: Any) -> GenerationRequest:
    defaults = replace(DEFAULTS, **configured_defaults(DEFAULTS, LIMITS, configuration))
    return GenerationRequest.create(limits=LIMITS, defaults=defaults, prompt="x", **{"seed": 5} | given)


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
    given |= {"seed": None} if key.target == "seed" else {}
    without = request_of(read(text_of(key.section, needed)), **{**given, "seed": 5})
    changed = request_of(read(text_of(key.section, needed, line)), **given)
    assert wire.to_text(changed) != wire.to_text(without)
    if (
        key.target in ROWS
        and not isinstance(KEYS[key.section, key.name].convert, object.__class__)
        and key.target
        not in (
            "slg",
            "template",
        )
    ):
        written = ROWS[key.target].kind.check(key.target, request_value(key, read), LIMITS)
        held = getattr(changed, ROWS[key.target].attribute)
        assert held == ((written,) if key.target == "negative_prompt" else written) or key.target == "passes"


def request_value(key: Key, read: Read) -> Any:
    needed = NEEDED.get((key.section, key.name), "")
    return read(text_of(key.section, needed, f"{key.name} = {example_of(key)}")).fields[key.target]


@pytest.mark.parametrize("key", of_way("start"))
def test_every_key_of_the_start_changes_it(key: Key, read: Read) -> None:
    text = text_of(key.section, NEEDED.get((key.section, key.name), ""), f"{key.name} = {example_of(key)}")
    if (key.section, key.name) == ("encoder", "device"):
        with pytest.raises(ConfigurationError, match="all components run on one device"):
            read(text)
        assert read(text + '\n[pipeline]\ndevice = "cpu"').start == {"device": "cpu"}
        return
    assert read(text).start == STARTS[key.section, key.name]


@pytest.mark.parametrize("key", of_way("idle", "absent"))
def test_keys_without_a_meaning_are_answered(key: Key, read: Read) -> None:
    on = {bool: "true", float: "0.7", str: '"other"'}[key.types[0]] if key.types else "true"
    on = "false" if key.off == (True,) else on
    if key.way == "absent" and key.off is not None:
        with pytest.raises(ConfigurationError) as caught:
            read(text_of(key.section, f"{key.name} = {on}"))
        assert f"[{key.section}] {key.name} asks for what there is not: {key.sentence}" in str(caught.value)
        off = {False: "false", "": '""'}[key.off[0]]  # type: ignore[index]
        assert read(text_of(key.section, f"{key.name} = {off}")).settled.notes == ()
        return
    (note,) = [each for each in read(text_of(key.section, f"{key.name} = {on}")).settled.notes if "waits" not in each]
    assert note == (key.sentence or f"[{key.section}] is left aside: {key.help}")
    assert key.off is None or "has no effect on MAX: " in note


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
        ConfigurationError, match="MAX_ZIMAGE_GENERATION_HIGHT stands for no key; the nearest is MAX_ZIM"
    ):
        read("", MAX_ZIMAGE_GENERATION_HIGHT="64")
    with pytest.raises(ConfigurationError, match="MAX_ZIMAGE_GENERATION_HEIGHT must be a multiple of 16, got 70"):
        read("", MAX_ZIMAGE_GENERATION_HEIGHT="70")


REFUSED = [
    ("[generaton]\nheight = 64", "line 2: profile [generaton] has no key height; is the section [generation] meant?"),
    ("[default.generaton]\nheight = 64", "there is no section [default.generaton]; the nearest is generation"),
    ("[generation]\nhight = 64", "line 2: [generation] has no key hight; the nearest is height"),
    ("modelpath = 'x'", "line 1: the top has no key modelpath; the nearest is model_path"),
    ("[generation]\nheight = 100", "line 2: [generation] height must be a multiple of 16, got 100"),
    ("[generation]\nheight = '64'", "line 2: [generation] height must be a whole number, got '64'"),
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
        read("[generation]\nhight = 1\nwidth = 7\n[slg]\nscale = -1", MAX_ZIMAGE_SLG_STOP="2")
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
    ("strength = 0.5", {}, {"strength": 1.0}),
    ("strength = 0.5", {"image": IMAGE}, {"strength": 0.5}),
    ("height = 64\nwidth = 64", {"image": IMAGE}, {"height": 128, "width": 96}),
    ('system_prompt = "a"', {"template": "photorealistic"}, {}),
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
