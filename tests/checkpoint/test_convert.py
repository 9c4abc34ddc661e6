"""Conversions, tensor by tensor against what torch, safetensors and the gguf library make of the same weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from max.dtype import DType
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from max_zimage import ZImagePipeline, convert
from max_zimage.checkpoint.config import model_specs
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.locate import COMPONENTS
from max_zimage.checkpoint.published import BASE_SHIFT, TURBO_SHIFT, published_configs
from max_zimage.checkpoint.writers.encodings import e4m3_bits
from max_zimage.checkpoint.writers.metadata import DONE
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.embedded import PATH as EMBEDDED
from tests.references.tiny import StateDict, TinySpec, original_transformer, original_vae, write_tiny

BLOCK = "layers.0.attention.qkv.weight"


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in float32, of which no vector and no pad token is zero, in several shards."""
    folder = tmp_path_factory.mktemp("random")
    write_tiny(folder, TinySpec(refiner_layers=2, shard_size="300KB"))
    return folder


@pytest.fixture(params=["embedded", "random"])
def model(request: pytest.FixtureRequest) -> Path:
    return EMBEDDED if request.param == "embedded" else request.getfixturevalue("random")


def state_of(folder: Path, component: str) -> StateDict:
    """All tensors of a component, read by the safetensors library."""
    state: StateDict = {}
    for file in sorted((folder / component).glob("*.safetensors")):
        state |= load_file(file)
    return state


def original(folder: Path, component: str) -> StateDict:
    """What a single file should hold: the original names, without the norm that the model never reads."""
    state = state_of(folder, component)
    if component == "text_encoder":
        return state
    state = original_transformer(state) if component == "transformer" else original_vae(state)
    return {name: tensor for name, tensor in state.items() if name != "norm_final.weight"}


def check_equal(found: StateDict, expected: StateDict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_there_and_back_through_original_files(model: Path, tmp_path: Path) -> None:
    there = convert(model, tmp_path / "original", layout="original")
    assert there.components == COMPONENTS
    for component in COMPONENTS:
        (file,) = (tmp_path / "original" / component).iterdir()
        check_equal(load_file(file), original(model, component))
        convert(file, tmp_path / component, layout="diffusers", configs=model)
        check_equal(state_of(tmp_path / component, component), state_of(model, component))


def test_there_and_back_through_one_file(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.safetensors"
    convert(model, file, layout="all-in-one")
    text = {f"text_encoders.qwen3_4b.transformer.{name}": t for name, t in original(model, "text_encoder").items()}
    image = {f"model.diffusion_model.{name}": t for name, t in original(model, "transformer").items()}
    vae = {f"vae.{name}": t for name, t in original(model, "vae").items()}
    assert "text_encoders.qwen3_4b.transformer.model.embed_tokens.weight" in text
    check_equal(load_file(file), {**text, **image, **vae})
    convert(file, tmp_path / "back", layout="diffusers", configs=model)
    for component in COMPONENTS:
        check_equal(state_of(tmp_path / "back", component), state_of(model, component))
    for name in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "vae/config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((model / name).read_text())


@pytest.mark.parametrize("type", ["float32", "bfloat16", "float16"])
def test_a_folder_of_another_dtype(random: Path, tmp_path: Path, type: str) -> None:
    dtype = getattr(torch, type)
    convert(random, tmp_path / "x", layout="diffusers", type=type, shard_gb=2e-4)
    for component in COMPONENTS:
        check_equal(
            state_of(tmp_path / "x", component), {n: t.to(dtype) for n, t in state_of(random, component).items()}
        )
    index = json.loads((tmp_path / "x" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(state_of(random, "transformer"))
    assert json.loads((tmp_path / "x" / "text_encoder" / "config.json").read_text())["dtype"] == type


def test_bfloat16_files_give_the_engine_the_same_weights(random: Path, tmp_path: Path) -> None:
    convert(random, tmp_path / "x", layout="diffusers", type="bfloat16")
    plans = [ZImagePipeline.prepare(folder, device="cpu").sources.plans for folder in (random, tmp_path / "x")]
    for component in COMPONENTS:
        before, after = (load(each[component], "bfloat16") for each in plans)
        assert before.keys() == after.keys()
        for name, buffer in before.items():
            bits, others = (each.view(DType.uint16, each.shape).to_numpy() for each in (buffer, after[name]))
            assert np.array_equal(bits, others), name


def read_gguf(file: Path) -> tuple[gguf.GGUFReader, dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(file)
    return reader, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_gguf_in_bfloat16_loses_nothing(tmp_path: Path, component: str) -> None:
    file = tmp_path / "x.gguf"
    convert(None, file, layout="gguf", components=[component])
    reader, tensors = read_gguf(file)
    expected = original(EMBEDDED, component)
    assert reader.fields["general.architecture"].contents() == {"transformer": "lumina2"}.get(component, "qwen3")
    assert len(tensors) == len(expected)
    for name, tensor in expected.items():
        found = tensors[llama(name) if component == "text_encoder" else name]
        small = tensor.dim() < 2 or tensor.numel() <= 1024
        assert found.tensor_type == (gguf.GGMLQuantizationType.F32 if small else gguf.GGMLQuantizationType.BF16)
        assert found.shape.tolist() == list(reversed(tensor.shape))
        numbers = gguf.quants.dequantize(found.data, found.tensor_type).reshape(tensor.shape)
        assert np.array_equal(numbers, tensor.float().numpy()), name
    if component == "text_encoder":
        keys: dict[str, float] = {
            "block_count": 4,
            "embedding_length": 128,
            "attention.head_count": 2,
            "attention.head_count_kv": 1,
        }
        keys |= {"attention.key_length": 64, "feed_forward_length": 384, "rope.freq_base": 1e6}
        assert {key: reader.fields[f"qwen3.{key}"].contents() for key in keys} == keys
    convert(file, tmp_path / "back", layout="diffusers", type="bfloat16", configs=EMBEDDED)
    check_equal(state_of(tmp_path / "back", component), state_of(EMBEDDED, component))


def llama(name: str) -> str:
    """A name of transformers as llama.cpp's own table has it."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 4)
    found = names.get_name(name.removesuffix(".weight"))
    assert found is not None
    return f"{found}.weight"


@pytest.mark.parametrize("type", ["q8_0", "q5_0", "q5_1", "q4_0", "q4_1"])
def test_blocks_are_those_of_the_gguf_library(tmp_path: Path, type: str) -> None:
    convert(None, tmp_path / "x.gguf", layout="gguf", type=type, keep_refiners=True)
    _, tensors = read_gguf(tmp_path / "x.gguf")
    quantized = {name for name, tensor in tensors.items() if tensor.tensor_type.name == type.upper()}
    # The inner width of the embedded model's feed-forward layers is no multiple of 32.
    ends = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w3", "adaLN_modulation.0")
    assert quantized == {f"layers.{i}.{end}.weight" for i in range(6) for end in ends}
    for name, tensor in original(EMBEDDED, "transformer").items():
        numbers = tensor.float().numpy()
        expected = gguf.quants.quantize(numbers, tensors[name].tensor_type)
        assert np.array_equal(tensors[name].data, expected.reshape(tensors[name].data.shape)), name


@pytest.mark.parametrize("keep_refiners", [False, True])
def test_scaled_float8_is_torchs(random: Path, tmp_path: Path, keep_refiners: bool) -> None:
    convert(random, tmp_path / "x.safetensors", layout="all-in-one", type="fp8_scaled", keep_refiners=keep_refiners)
    found = load_file(tmp_path / "x.safetensors")
    wanted = {f"model.diffusion_model.{name}": t for name, t in original(random, "transformer").items()}
    wanted |= {f"text_encoders.qwen3_4b.transformer.{n}": t for n, t in original(random, "text_encoder").items()}
    wanted |= {f"vae.{name}": tensor for name, tensor in original(random, "vae").items()}
    ends = (*("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"), "_proj")
    names = {name for name in wanted if name.removesuffix(".weight").endswith(ends) and not name.startswith("vae.")}
    names = {name for name in names if not keep_refiners or "refiner" not in name}
    assert {name for name, tensor in found.items() if tensor.dtype == torch.float8_e4m3fn} == names
    for name, tensor in wanted.items():
        if name not in names:
            assert torch.equal(found[name], tensor.bfloat16()), name
            continue
        layer = name.removesuffix(".weight")
        scale = tensor.abs().max() / 448
        assert torch.equal(found[f"{layer}.weight_scale"], scale)
        assert torch.equal(found[name].float(), (tensor / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()), name
        assert json.loads(bytes(found[f"{layer}.comfy_quant"].tolist())) == {"format": "float8_e4m3fn"}
    assert len(found) == len(wanted) + 2 * len(names)


def test_every_float8_and_every_tie_between_two() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    exact = codes[codes.isfinite()].double().unique()
    ties = ((exact[1:] + exact[:-1]) / 2).float()
    near = torch.cat([torch.nextafter(ties, torch.tensor(s * torch.inf)) for s in (-1.0, 1.0)])
    normal = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.randint(-20, 6, (1 << 16,))
    values = torch.cat([exact.float(), ties, near, normal]).clamp(-448, 448)
    expected = values.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(e4m3_bits(values.numpy()), expected)


def test_quantized_files_are_decoded(tmp_path: Path, notes: list[str]) -> None:
    """Blocks and scaled float8, with adaLN, norms and pad tokens that are neither."""
    convert(None, tmp_path / "q8.gguf", layout="gguf", type="q8_0")
    convert(None, tmp_path / "fp8.safetensors", layout="original", type="fp8_scaled", components=["transformer"])
    _, tensors = read_gguf(tmp_path / "q8.gguf")
    blocks = {name: gguf.quants.dequantize(t.data, t.tensor_type) for name, t in tensors.items()}
    stored = load_file(tmp_path / "fp8.safetensors")
    scaled = {
        name: (tensor.float() * stored.get(f"{name}_scale", torch.tensor(1.0))).numpy()
        for name, tensor in stored.items()
        if not name.endswith(("_scale", "comfy_quant"))
    }
    assert notes[0].startswith("8 matrices stay float32, whose rows are no multiples of 32: ")
    for file, decoded in (("q8.gguf", blocks), ("fp8.safetensors", scaled)):
        notes.clear()
        convert(
            tmp_path / file,
            tmp_path / "x.safetensors",
            layout="original",
            type="float32",
            configs=EMBEDDED,
            overwrite=True,
        )
        found = load_file(tmp_path / "x.safetensors")
        assert found.keys() == decoded.keys()
        for name, tensor in found.items():
            assert np.array_equal(tensor.numpy(), decoded[name].reshape(tensor.shape)), name
        (note,) = notes
        assert note.endswith("what its numbers have lost does not come back by storing them as float32")


def no_change(state: StateDict) -> None:
    pass


def nothing(state: StateDict) -> None:
    state[BLOCK] = torch.zeros_like(state[BLOCK])


def huge(state: StateDict) -> None:
    state[BLOCK][0, 0] = 7e4


@pytest.mark.parametrize("change", [no_change, nothing, huge])
def test_scales_of_unusual_matrices(tmp_path: Path, change: Callable[[StateDict], None]) -> None:
    state = {name: tensor.float() for name, tensor in original(EMBEDDED, "transformer").items()}
    change(state)
    save_file(state, tmp_path / "a.safetensors")
    convert(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", layout="original", type="fp8_scaled", configs=EMBEDDED
    )
    found = load_file(tmp_path / "b.safetensors")
    scale = found[BLOCK.replace("weight", "weight_scale")]
    assert scale > 0
    assert torch.allclose(found[BLOCK].float() * scale, state[BLOCK], rtol=2**-4, atol=float(scale) * 2**-10)


@pytest.mark.parametrize("layout", ["original", "all-in-one", "diffusers"])
def test_headers_are_sound(random: Path, tmp_path: Path, layout: str) -> None:
    state = state_of(random, "transformer")
    kept = {"modelspec.title": "A model", "format": "pt"}
    save_file(state, tmp_path / "a.safetensors", metadata=kept)
    output = tmp_path / ("x" if layout == "diffusers" else "x.safetensors")
    type = None if layout == "diffusers" else "fp8_scaled"
    convert(tmp_path / "a.safetensors", output, layout=layout, type=type, configs=random)
    (file,) = output.rglob("*.safetensors") if output.is_dir() else [output]
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    sizes = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
    assert length % 8 == 0
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for n, entry in header.items() if n[0] != "_")
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    (done,) = json.loads(metadata.pop(DONE))
    assert metadata == kept
    assert (done["input"], done["layout"], done["type"]) == ("a.safetensors", layout, type or "as it was")


def test_the_published_configurations_are_those_of_the_graphs() -> None:
    turbo = replace(FULL_MODEL, diffusion_gemma=None)
    assert model_specs(**published_configs(TURBO_SHIFT)) == turbo
    base = replace(turbo, schedule=replace(turbo.schedule, shift=BASE_SHIFT))
    assert model_specs(**published_configs(BASE_SHIFT)) == base
