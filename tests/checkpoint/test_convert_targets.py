"""Where conversions go, what they refuse, and what is left when they end early."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from max_zimage import convert
from max_zimage.checkpoint import convert as module
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.errors import CheckpointError
from tests.paths import ROOT
from tests.references import adapters

TRANSFORMER = EMBEDDED / "transformer" / "diffusion_pytorch_model.safetensors"
KEYS = "layers.1.attention.to_k"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        ({"layout": "folder"}, ["the layout must be one of diffusers, original, all-in-one, gguf, got 'folder'"]),
        (
            {"layout": "gguf", "output": "x.gguf", "type": "Q4_K_M"},
            ["the type must be one of float32, ", "got 'Q4_K_M', which llama.cpp's llama-quantize makes"],
        ),
        ({"type": "nvfp4"}, ["got 'nvfp4', which convert_to_quant (ctq) makes of the original layout"]),
        ({"type": "fp8"}, ["got 'fp8', ComfyUI's float8 with a scale for each matrix is fp8_scaled"]),
        ({"type": "7"}, ["q4_1, got '7'"]),
        (
            {"type": "fp8_scaled"},
            ["the layout diffusers holds float32, bfloat16, float16, not fp8_scaled, which is of "],
        ),
        ({"layout": "original", "type": "q8_0"}, ["not q8_0, which is of gguf"]),
        ({"layout": "all-in-one"}, ["the layout all-in-one is a file that ends in .safetensors, got x"]),
        ({"layout": "gguf", "output": "x.bin"}, ["the layout gguf is a file that ends in .gguf, got x.bin"]),
        ({"output": "x.safetensors"}, ["the layout diffusers is a folder; got the name x.safetensors"]),
        ({"components": ["unet", "vae"]}, ["must be one of text_encoder, transformer, vae, got 'unet'"]),
        ({"components": ["vae", "vae"]}, ["a component is named twice"]),
        ({"layout": "gguf", "output": "x.gguf", "components": ["vae"]}, ["a vae cannot be written as gguf"]),
        (
            {"layout": "original", "components": ["vae"], "type": "fp8_scaled"},
            ["the VAE is never quantized; write it with one of float32, bfloat16, float16"],
        ),
        ({"keep_refiners": True}, ["--keep-refiners belongs to the types fp8_scaled, q8_0"]),
        ({"shift": 3.0}, ["--shift belongs to a whole diffusers folder made of weight files"]),
        ({"shift": -1.0}, ["the shift must be from "]),
        ({"shard_gb": 0.0}, ["a shard must hold more than 0 GB, got 0"]),
        ({"layout": "original", "shard_gb": 1.0}, ["--shard-gb belongs to the layout diffusers"]),
        ({"loras": [("a.safetensors", float("nan"))]}, ["must be a finite number, got nan for a.safetensors"]),
        ({"loras": [("gone.safetensors", 1.0)]}, ["gone.safetensors", "cannot be read"]),
        ({"layout": "original", "output": "x.safetensors"}, ["is one file, and the input holds text_encoder, transf"]),
        ({"configs": EMBEDDED}, ["--configs belongs to weight files"]),
        ({"source": "nowhere"}, ["no model at nowhere"]),
        ({"source": TRANSFORMER}, [" missing", "name a model with --configs"]),
        ({"source": TRANSFORMER, "components": ["vae"], "configs": EMBEDDED}, ["holds no vae; it holds transformer"]),
        (
            {"type": "q4_k", "layout": "gguf", "output": "x", "components": ["unet"]},
            ["the type must be", "a component must be", "is a file that ends in .gguf"],
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], sentences: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"source": None, "output": "x", "layout": "diffusers", **arguments}
    with pytest.raises(CheckpointError) as error:
        convert(asked.pop("source"), asked.pop("output"), **asked)
    for sentence in sentences:
        assert sentence in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_scheduler_wants_a_shift(tmp_path: Path, notes: list[str]) -> None:
    convert(None, tmp_path / "all.safetensors", layout="all-in-one")
    with pytest.raises(CheckpointError, match="say --shift 3 for Turbo or 6 for the base model"):
        convert(tmp_path / "all.safetensors", tmp_path / "x", layout="diffusers")
    assert notes == []


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, folder))


@pytest.mark.parametrize(
    ("output", "overwrite", "sentence"),
    [
        ("model/new", True, "is inside the input"),
        ("model", True, "is what is read"),
        (".", True, "is inside the output"),
        ("there", False, "is there already; name another place, or use --overwrite"),
        ("there", True, "holds what no model does, mine.txt"),
        ("file", True, "the output is a folder, and .* is a file"),
        ("link", False, "is there already"),
    ],
)
def test_places_that_are_taken(tmp_path: Path, output: str, overwrite: bool, sentence: str) -> None:
    copied(tmp_path / "model")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        convert(tmp_path / "model", tmp_path / output, layout="diffusers", overwrite=overwrite)
    assert tree(tmp_path) == before


def test_the_input_is_never_its_own_output(tmp_path: Path) -> None:
    file = Path(shutil.copyfile(TRANSFORMER, tmp_path / "a.safetensors"))
    (tmp_path / "b.safetensors").symlink_to(file)
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(CheckpointError, match="the input is never replaced"):
            convert(file, tmp_path / name, layout="original", configs=EMBEDDED, overwrite=True)
    assert file.read_bytes() == TRANSFORMER.read_bytes()


def test_an_output_is_replaced_when_asked(tmp_path: Path) -> None:
    for type in ("float32", "bfloat16"):
        convert(None, tmp_path / "x", layout="diffusers", type=type, overwrite=True)
        convert(None, tmp_path / "x.gguf", layout="gguf", type=type, overwrite=True)
    convert(None, tmp_path / "new", layout="diffusers", type="bfloat16")
    convert(None, tmp_path / "new.gguf", layout="gguf", type="bfloat16")
    assert tree(tmp_path / "x") == tree(tmp_path / "new")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new.gguf", "x", "x.gguf"]


def test_an_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    convert(None, tmp_path, layout="diffusers")
    assert (tmp_path / "model_index.json").is_file()


def test_the_disk_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 20_000_000}))
    with pytest.raises(CheckpointError, match=r"the output needs \d+\.\d\d MB, \d+\.\d\d MB are free at "):
        convert(None, tmp_path / "x", layout="diffusers")
    assert not list(tmp_path.iterdir())
    convert(None, tmp_path / "x.gguf", layout="gguf", type="q4_0")


@pytest.mark.parametrize(
    ("type", "value", "sentence"),
    [
        (
            "fp8_scaled",
            float("nan"),
            "layers.0.attention.qkv.weight holds 1 numbers that are NaN or infinite, which F8_",
        ),
        (
            "float16",
            1e5,
            "layers.0.attention.qkv.weight holds 1 numbers of up to 1e.05, which would become infinite in F",
        ),
        ("bfloat16", 3.4e38, "would become infinite in BF16"),
        ("q8_0", float("inf"), "which Q8_0 cannot store"),
    ],
)
def test_numbers_that_cannot_be_stored(tmp_path: Path, type: str, value: float, sentence: str) -> None:
    state = {name: tensor.float() for name, tensor in load_file(TRANSFORMER).items()}
    state["layers.0.attention.to_q.weight"][3, 4] = value
    (tmp_path / "in").mkdir()
    save_file(state, tmp_path / "in" / "a.safetensors")
    layout, output = ("gguf", "b.gguf") if type == "q8_0" else ("original", "b.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        convert(tmp_path / "in" / "a.safetensors", tmp_path / output, layout=layout, type=type, configs=EMBEDDED)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("layout", ["diffusers", "gguf"])
def test_a_killed_conversion_leaves_nothing_under_the_name(tmp_path: Path, notes: list[str], layout: str) -> None:
    output = tmp_path / ("x.gguf" if layout == "gguf" else "x")
    script = (
        "import os, signal, sys\nfrom max_zimage import convert\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert(None, sys.argv[1], layout=sys.argv[2])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, output, layout], cwd=ROOT, env=environment)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(rf"{output.name}\.unfinished-\d+", left.name)
    convert(None, output, layout=layout)
    assert notes == [f"{left} is there: a conversion that is under way, or was killed; in that case remove it"]
    assert {path.name for path in tmp_path.iterdir()} == {output.name, left.name}


def test_an_error_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(Path(shutil.copytree(EMBEDDED / "vae", tmp_path / "x" / "vae")).parent)

    def break_off(*arguments: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(module, "write_weights", break_off)
    for folder in ("x", "y"):
        with pytest.raises(OSError, match="the disk is gone"):
            convert(None, tmp_path / folder, layout="diffusers", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert tree(tmp_path / "x") == before


Change = Callable[[torch.Tensor], torch.Tensor]


@pytest.mark.parametrize(
    ("type", "rounded"), [("float32", lambda rows: rows), ("bfloat16", lambda rows: rows.bfloat16().float())]
)
def test_a_lora_is_added_before_the_one_rounding(tmp_path: Path, type: str, rounded: Change) -> None:
    lora = adapters.factors(modules=(KEYS,))
    file = tmp_path / "style.safetensors"
    adapter = adapters.written(file, adapters.spelled(lora, "transformer.", adapters.AB))
    convert(
        None, tmp_path / "x.safetensors", layout="original", type=type, components=["transformer"], loras=[(file, 0.7)]
    )
    found = load_file(tmp_path / "x.safetensors")["layers.1.attention.qkv.weight"].float().chunk(3)
    for part, rows in zip(adapters.QKV, found, strict=True):
        name = KEYS.replace("to_k", part) + ".weight"
        assert np.array_equal(rows, rounded(torch.from_numpy(adapters.rows_of(name, (adapter, 0.7))))), part
    base = adapters.state()[f"{KEYS}.weight"].double().numpy()
    assert np.abs(found[1].numpy() - base - lora.deltas(0.7)[KEYS]).max() <= 2**-8 * np.abs(found[1].numpy()).max()
    assert not np.array_equal(found[1].numpy(), base)


def test_a_lora_of_another_component(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    adapters.written(file, adapters.spelled(adapters.factors(modules=(KEYS,)), "transformer.", adapters.AB))
    with pytest.raises(CheckpointError, match="changes the transformer, and vae is written"):
        convert(None, tmp_path / "x.safetensors", layout="original", components=["vae"], loras=[(file, 1.0)])
