"""`max-zimage convert`: its flags, what it says, and a picture drawn from what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from max_zimage.checkpoint import convert as module
from max_zimage.checkpoint.convert import Conversion
from max_zimage.cli import convert as command
from max_zimage.cli.main import main
from max_zimage.embedded import PATH as EMBEDDED
from tests.references import adapters

DRAW = ("generate", "a red star", "--steps", "2", "--height", "64", "--width", "96", "--seed", "3", "--quiet")
KEYS = "layers.1.attention.to_k"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_converted_model_draws_the_same_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through one file, float32 and back: no number changes on the way, so no pixel does."""
    file, folder = str(tmp_path / "all.safetensors"), str(tmp_path / "model")
    assert main(["convert", "tiny-zimage", "--output", file, "--layout", "all-in-one", "--type", "float32"]) == 0
    shown = capsys.readouterr()
    assert "all.safetensors: text_encoder, transformer, vae; 45.55 MB, tensors: 347 F32, in " in shown.out
    assert "Writing all.safetensors: 347/347" in shown.err
    words = ["convert", file, "--output", folder, "--layout", "diffusers", "--configs", "tiny-zimage", "--json"]
    assert main(words) == 0
    shown = capsys.readouterr()
    said = json.loads(shown.out)
    assert shown.err == ""
    assert (said["path"], said["stored"], said["tensors"]) == (folder, {"F32": 363}, 363)
    assert main([*DRAW, "--output", str(tmp_path / "a.png")]) == 0
    assert main([*DRAW, "--model", folder, "--output", str(tmp_path / "b.png")]) == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_flags_are_the_arguments_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def convert(source: object, output: object, **others: object) -> Conversion:
        asked.update({"source": source, "output": output, **others})
        return Conversion(path=Path("x"), components=("vae",), files=(), nbytes=1, tensors=1, stored={"F32": 1})

    monkeypatch.setattr(command, "convert", convert)
    flags = ["--component", "transformer", "--component", "vae", "--type", "fp8_scaled", "--overwrite"]
    flags += ["--lora", "a:b.safetensors", "--lora", "C:\\b.safetensors:-0.5", "--lora", "c.safetensors:1e-1"]
    flags += ["--configs", "other", "--shift", "6", "--keep-refiners", "--shard-gb", "2.5", "--quiet"]
    assert main(["convert", "in", "--output", "out", "--layout", "original", *flags]) == 0
    assert asked == {
        "source": "in",
        "output": "out",
        "layout": "original",
        "type": "fp8_scaled",
        "components": ["transformer", "vae"],
        "loras": [
            (Path("a:b.safetensors"), 1.0),
            (Path("C:\\b.safetensors"), -0.5),
            (Path("c.safetensors"), 0.1),
        ],
        "configs": "other",
        "shift": 6.0,
        "keep_refiners": True,
        "shard_gb": 2.5,
        "overwrite": True,
    }
    assert main(["convert", "tiny-zimage", "--output", "out", "--layout", "gguf", "--configs", "tiny-zimage"]) == 0
    assert (asked["source"], asked["configs"], asked["type"], asked["loras"]) == (None, EMBEDDED, None, [])


def test_a_lora_and_what_is_said_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = tmp_path / "style.safetensors", tmp_path / "x.safetensors"
    adapter = adapters.written(file, adapters.spelled(adapters.factors(modules=(KEYS,)), "transformer.", adapters.AB))
    words = ["convert", "tiny-zimage", "--output", str(output), "--layout", "original", "--component", "transformer"]
    assert main([*words, "--type", "float32", "--lora", f"{file}:-2"]) == 0
    keys = load_file(output)["layers.1.attention.qkv.weight"].chunk(3)[1]
    assert np.array_equal(keys, adapters.rows_of(f"{KEYS}.weight", (adapter, -2.0)))
    capsys.readouterr()
    assert main([*words, "--lora", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"max-zimage: error: {output} is there already; name another place, or use --overwrite\n"
    )


def test_a_failure_while_writing_is_no_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_weights(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_weights", write_weights)
    words = ["convert", "tiny-zimage", "--output", str(tmp_path / "x"), "--layout", "diffusers", "--quiet"]
    assert main(words) == 1
    assert capsys.readouterr().err == "max-zimage: error: OSError: [Errno 28] No space left on device\n"
    assert not list(tmp_path.iterdir())
