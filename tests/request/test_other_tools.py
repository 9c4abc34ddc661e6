"""Pictures of other tools as what to draw: their text read field by field, and by the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from max_zimage.cli.main import main
from max_zimage.cli.saving import Destination
from max_zimage.errors import RequestError
from max_zimage.images.xmp import Source
from max_zimage.request.metadata import GenerationParameters, read_parameters
from max_zimage.request.other_tools import OtherParameters, read_any
from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES
from max_zimage.sampling.other_names import SAMPLER_LABELS, SHAPE_LABELS, sampler_of, shape_of
from tests.images.test_save import PARAMETERS, changed
from tests.references.diffusers_runs import Pair
from tests.references.loras import STYLE, write_adapter
from tests.request.conftest import Repeat
from tests.request.test_repeat import pixels

WEBUI = """a red star, (bright:1.2) on a "blue" background
Steps: two
Negative prompt: green, dark
yellow
Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.5, Seed: 11, Size: 96x64, Model hash: 0123456789, \
Model: z_image, RNG: CPU, Variation seed: 4, Variation seed strength: 0.25, Shift: 2.5, Version: v1.10.1"""
SD_CPP = """a red star
Steps: 4, CFG scale: 1.000000, SLG scale: 1.000000, Skip layers: [7, 8, 9, ], Skip layer start: 0.01, Skip layer end: \
0.2, Guidance: 3.500000, Eta: 0.000000, Seed: 42, Size: 128x96, Model: z.gguf, RNG: cuda, Sampler: euler discrete, \
Version: stable-diffusion.cpp"""


def put(path: Path, text: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path, pnginfo=chunks)
    return path


def read(path: Path, text: str, *given: str) -> OtherParameters:
    found = read_any(put(path, text), given)
    assert isinstance(found, OtherParameters)
    return found


def test_webui(tmp_path: Path) -> None:
    found = read(tmp_path / "a.png", WEBUI)
    assert found.values == {
        "prompt": 'a red star, (bright:1.2) on a "blue" background\nSteps: two',
        "negative_prompt": "green, dark\nyellow",
        "num_inference_steps": 3,
        "sampler": "comfy_dpmpp_2m",
        "sigma_shape": "comfy_karras",
        "guidance_scale": 2.5,
        "seed": 11,
        "width": 96,
        "height": 64,
        "noise": "torch",
        "variation_seed": 4,
        "variation_strength": 0.25,
        "shift": 2.5,
    }
    assert not found.is_from_image
    by, left, emphasis = found.notes
    assert "a.png is by v1.10.1, which draws other noise from a seed" in by
    assert "not carried over: Model hash 0123456789, Model z_image; the model is that of --model" in left
    assert "emphasis such as (word:1.2) has no meaning here" in emphasis


def test_stable_diffusion_cpp(tmp_path: Path) -> None:
    found = read(tmp_path / "a.png", SD_CPP)
    assert found.values == {
        "prompt": "a red star",
        "num_inference_steps": 4,
        "guidance_scale": 0,
        "seed": 42,
        "width": 128,
        "height": 96,
        "sampler": "euler",
        "sigma_shape": "normal",
    }
    named = "SLG scale 1.000000, Skip layers [7, 8, 9, ], Skip layer start 0.01, Skip layer end 0.2, Guidance 3.500000"
    assert f"not carried over: {named}, Eta 0.000000, Model z.gguf" in found.notes[1]


BEGIN = "a star\nSteps: 4, Seed: 1, "


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Sampler: DPM++ 2M SDE Karras", {"sampler": "dpmpp_2m_sde", "sigma_shape": "comfy_karras"}),
        ("Sampler: euler_a simple", {"sampler": "euler_ancestral", "sigma_shape": "simple"}),
        ("Sampler: dpm++2m", {"sampler": "comfy_dpmpp_2m"}),
        ("Sampler: Euler a, Schedule type: Automatic", {"sampler": "euler_ancestral"}),
        ("Sampler: Euler, Schedule type: SGM Uniform", {"sampler": "euler", "sigma_shape": "sgm_uniform"}),
        ("Sampler: Euler, CFG scale: 7", {"sampler": "euler", "guidance_scale": 6.0}),
        ("Sampler: Euler, CFG scale: 1.1", {"sampler": "euler", "guidance_scale": 0.1}),
        ("Sampler: Euler, Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: Latent", {"sampler": "euler"}),
    ],
)
def test_ways(tmp_path: Path, text: str, values: dict[str, Any]) -> None:
    found = read(tmp_path / "a.png", BEGIN + text).values
    assert found == {"prompt": "a star", "num_inference_steps": 4, "seed": 1} | values


def test_names_lead_back() -> None:
    """Every sampler and shape has a label, and labels stand for one that has that label."""
    assert set(SAMPLER_LABELS) == set(SAMPLERS)
    assert set(SHAPE_LABELS) == set(SIGMA_SHAPES)
    for name, label in SAMPLER_LABELS.items():
        found, rest = sampler_of(label)
        assert (found, rest) != (None, None), name
        assert SAMPLER_LABELS[str(found)] == label
        assert sampler_of(name)[0] is not None
    for name, label in SHAPE_LABELS.items():
        assert SHAPE_LABELS[str(shape_of(label))] == label, name


def test_all_that_cannot_be_used_is_said_together(tmp_path: Path) -> None:
    text = "a star\nSteps: x, Sampler: DPM2 a, Schedule type: Turbo, CFG scale: 0.5, Seed: -1, Size: big, "
    text += "Denoising strength: 0.5"
    with pytest.raises(RequestError) as error:
        read_any(put(tmp_path / "a.png", text))
    said = str(error.value)
    for each in (
        "Steps is 'x', which is no whole number",
        "CFG scale is '0.5', which is below 1",
        "Seed is '-1', which is no whole number",
        "Size is 'big', which is no size",
        "Sampler 'DPM2 a' has no counterpart; choose one with --sampler from",
        "Schedule type 'Turbo' has no counterpart; choose one with --sigma-shape from",
        "it was drawn from an image; name that one's file with --image",
    ):
        assert each in said
    given = "num_inference_steps", "sampler", "sigma_shape", "guidance_scale", "seed", "width", "height", "image"
    assert read(tmp_path / "b.png", text, *given).values == {"prompt": "a star", "strength": 0.5}


def test_a_negative_prompt_that_another_flag_makes_count(tmp_path: Path) -> None:
    text = "a star\nNegative prompt: blue\nSteps: 4, Sampler: Euler, Seed: 1, CFG scale: 1"
    assert "negative_prompt" not in read(tmp_path / "a.png", text).values
    for flag in ("nag_scale", "guidance_scale"):
        assert read(tmp_path / "b.png", text, flag).values["negative_prompt"] == "blue"


def test_adapters_in_the_prompt(tmp_path: Path) -> None:
    found = read(tmp_path / "a.png", "a <lora:my style:0.7> star <lora:b>\nSteps: 4, Seed: 1, Sampler: Euler")
    assert found.values["prompt"] == "a  star"
    assert [(each.name, each.scale) for each in found.loras] == [("my style", 0.7), ("b", 1.0)]


def test_the_command_line_draws_it(
    repeat: Repeat, tmp_path: Path, capsys: pytest.CaptureFixture[str], embedded: Pair
) -> None:
    """What it draws is what the same flags draw; what is left out is on stderr."""
    put(tmp_path / "a.png", WEBUI)
    assert main(["generate", "--from", "a.png", "--output", "b.png"]) == 0
    told = capsys.readouterr().err
    assert "max-zimage: warning: a.png is by v1.10.1, which draws other noise" in told
    assert "not carried over: Model hash 0123456789, Model z_image" in told
    prompt = 'a red star, (bright:1.2) on a "blue" background\nSteps: two'
    flags: tuple[str, ...]
    flags = ("--negative", "green, dark\nyellow", "--steps", "3", "--sampler", "comfy_dpmpp_2m", "--guidance", "2.5")
    flags += ("--sigma-shape", "comfy_karras", "--seed", "11", "--width", "96", "--height", "64", "--noise", "torch")
    flags += ("--variation-seed", "4", "--variation-strength", "0.25", "--shift", "2.5")
    assert repeat(prompt, *flags, "--output", "c.png") == (0, "")
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), pixels(tmp_path / "c.png"))
    assert read_parameters(tmp_path / "b.png") == read_parameters(tmp_path / "c.png")
    assert repeat("another", "--from", "a.png", "--seed", "3", "--output", "d.png") == (0, "")
    found = read_parameters(tmp_path / "d.png")
    assert (found.prompt, found.seed, found.sampler, found.guidance_scale) == ("another", 3, "comfy_dpmpp_2m", 2.5)
    text = Image.open(tmp_path / "b.png").info["parameters"]  # and what is written reads as what was read
    again = read(tmp_path / "e.png", text)
    assert again.values == read(tmp_path / "a.png", WEBUI).values


def test_adapters_are_looked_for_by_name(repeat: Repeat, tmp_path: Path, embedded: Pair) -> None:
    put(tmp_path / "a.png", "a <lora:style:0.5>\nSteps: 1, Seed: 1, Sampler: Euler, Size: 64x64")
    code, error = repeat("--from", "a.png", "--output", "b.png")
    assert code == 2
    assert "was drawn with the adapter style at 0.5; name its file with --lora, or put style.safetensors bes" in error
    write_adapter(tmp_path / "style.safetensors", STYLE, seed=0)
    try:
        assert repeat("--from", "a.png", "--output", "b.png") == (0, "")
    finally:
        embedded.ours.set_loras()
    (kept,) = read_parameters(tmp_path / "b.png").loras
    assert (kept["name"], kept["scale"]) == ("style.safetensors", 0.5)


REFUSED = {
    "sampler": ("Sampler: DPM2 a", "Sampler 'DPM2 a' has no counterpart; choose one with --sampler"),
    "size": ("Sampler: Euler, Size: 100x64", "--width must be a multiple of 16, got 100"),
    "seed": (f"Sampler: Euler, Seed: {2**64}", "--seed must be"),
    "image": ("Sampler: Euler, Denoising strength: 0.5", "it was drawn from an image; name that one's file with --im"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input(text: str, message: str, loads_nothing: Repeat, tmp_path: Path) -> None:
    put(tmp_path / "a.png", BEGIN + text)
    code, error = loads_nothing("--from", "a.png", "--output", "b.png")
    assert code == 2
    assert message in error


@pytest.mark.parametrize("text", ["just words", '{"Steps": 1}', "", "a: b, c: d, e: f"])
def test_what_is_no_text_of_such_a_tool(text: str, loads_nothing: Repeat, tmp_path: Path) -> None:
    put(tmp_path / "a.png", text)
    code, error = loads_nothing("--from", "a.png", "--output", "b.png")
    assert code == 2
    assert "a.png: the parameters were written by another program" in error


def test_own_parameters_come_first(repeat: Repeat, tmp_path: Path) -> None:
    """A prompt that looks like parameters is a prompt."""
    prompt = "a star\nSteps: 9, Sampler: Heun, Seed: 5"
    assert repeat(prompt, "--steps", "1", "--seed", "4", "--output", "a.jpg") == (0, "")
    found = read_any(tmp_path / "a.jpg")
    assert isinstance(found, GenerationParameters)
    assert (found.prompt, found.num_inference_steps, found.seed) == (prompt, 1, 4)


def test_no_metadata(repeat: Repeat, tmp_path: Path) -> None:
    quick = ("--steps", "1", "--seed", "4", "--height", "64", "--width", "64")
    assert repeat("a star", *quick, "--output", "a.png") == (0, "")
    assert repeat("a star", *quick, "--no-metadata", "--output", "b.png") == (0, "")
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), pixels(tmp_path / "a.png"))
    assert Image.open(tmp_path / "b.png").info == {}
    code, error = repeat("--from", "b.png")
    assert (code, "b.png holds no generation parameters" in error) == (2, True)
    code, error = repeat("a star", "--no-metadata", "--latents-out", "c.npy")
    assert (code, "--no-metadata: latents carry none; leave it out" in error) == (2, True)


def test_no_room_for_other_tools_is_told() -> None:
    to = Destination([Path("d.jpg")], Source.MODEL)
    assert to.doubts(changed(PARAMETERS, prompt="star " * 5000)) == []
    (doubt,) = to.doubts(changed(PARAMETERS, prompt="star " * 7000))
    assert doubt.startswith("d.jpg: a JPEG has no room for so long a text for other tools")
    assert replace(to, source=None).doubts(changed(PARAMETERS, prompt="star " * 7000)) == []
    assert Destination([Path("d.png")], Source.MODEL).doubts(changed(PARAMETERS, prompt="star " * 7000)) == []
