"""What cannot be used is refused with a sentence that names it, before anything is computed, and all at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from max_zimage.checkpoint.adapters import AdapterError, added, open_adapter
from max_zimage.checkpoint.adapters.others import what_else
from max_zimage.checkpoint.adapters.spelling import REFUSED
from max_zimage.checkpoint.expand import transformer_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.plan import plan
from max_zimage.embedded import PATH
from max_zimage.errors import CheckpointError
from tests.references import gguf_files
from tests.references.adapters import FILES, opened, random, rows_of, specs, written
from tests.references.gguf_files import Kind
from tests.references.tiny import StateDict

QUERY = "layers.0.attention.to_q"
GOOD: StateDict = {f"{QUERY}.lora_A.weight": random(4, 256), f"{QUERY}.lora_B.weight": random(256, 4)}


def without(part: str) -> StateDict:
    return {name: values for name, values in GOOD.items() if part not in name}


def at(module: str, down: tuple[int, ...], up: tuple[int, ...]) -> StateDict:
    return {f"{module}.lora_A.weight": random(*down), f"{module}.lora_B.weight": random(*up)}


BAD: dict[str, tuple[StateDict, str]] = {
    "Flux": (
        at("lora_unet_double_blocks_0_img_attn_proj", (4, 256), (256, 4)),
        "2 of 2 tensors belong to no module of this model: lora_unet_double_blocks_0_img_attn_proj.lora_A.weight, .*; "
        "they are those of a Flux model, and only Z-Image's fit",
    ),
    "SDXL": (at("lora_unet_down_blocks_1_attentions_0_proj_in", (4, 256), (256, 4)), "those of a UNet"),
    "CLIP": (at("lora_te1_text_model_encoder_layers_0_mlp_fc1", (4, 256), (256, 4)), "those of a CLIP text encoder"),
    "Qwen-Image": (at("transformer_blocks.0.attn.to_q", (4, 256), (256, 4)), "those of Qwen-Image or another"),
    "Wan": (at("diffusion_model.blocks.0.self_attn.q", (4, 256), (256, 4)), "those of a Wan model"),
    "nothing known": (at("some.thing", (4, 8), (8, 4)), "expected are names such as transformer.layers.0.attention"),
    "some unknown": (
        {**GOOD, **at("layers.0.attention.to_r", (4, 256), (256, 4)), "extra": random(3)},
        "1 tensor of no known kind: extra\n.*2 of 5 tensors belong to no module .*: layers.0.attention.to_r",
    ),
    "one layer too many": (
        at("transformer.layers.30.attention.to_q", (4, 256), (256, 4)),
        r"layers\.30\..*; its transformer has layers\.0 to layers\.\d+, noise_refiner\.0 to noise_refiner\.0",
    ),
    "one refiner too many": (at("noise_refiner.2.attention.to_q", (4, 256), (256, 4)), "its transformer has layers.0"),
    "down alone": (without("lora_B"), rf"{QUERY}: .*lora_A\.weight without its lora_B \(lora_up\)"),
    "up alone": (without("lora_A"), rf"{QUERY}: .*lora_B\.weight without its lora_A \(lora_down\)"),
    "alpha alone": ({**GOOD, "layers.1.attention.to_q.alpha": torch.tensor(1.0)}, "alpha alone changes nothing"),
    "columns": (at(QUERY, (4, 128), (256, 4)), rf"{QUERY}\.lora_A\.weight is \[4, 128\] and must be \[4, 256\]"),
    "ranks": (at(QUERY, (4, 256), (256, 8)), rf"{QUERY}\.lora_B\.weight is \[256, 8\] and must be \[256, 4\]"),
    "rows of three": (
        at(QUERY, (4, 256), (768, 4)),
        r"is \[768, 4\] and must be \[256, 4\]; those are the rows of query, key and value together, .* attention\.qkv",
    ),
    "rows of one": (
        at("layers.0.attention.qkv", (4, 256), (256, 4)),
        r"is \[256, 4\] and must be \[768, 4\]; those are the rows of one of query, key and value, whose modules",
    ),
    "a number": ({**GOOD, f"{QUERY}.lora_A.weight": torch.tensor(1.0)}, r"lora_A\.weight is a single number"),
    "rank 0": (at(QUERY, (0, 256), (256, 0)), r"lora_A\.weight is \[0, 256\]: a rank of 0"),
    "no matrix": (
        at("layers.0.attention_norm1", (4, 256), (256, 4)),
        "a LoRA changes a matrix, and this",
    ),
    "no bias": ({f"{QUERY}.diff_b": random(256)}, "diff_b changes a bias, and this module has none"),
    "a part twice": ({**GOOD, f"{QUERY}.lora_down.weight": random(4, 256)}, "are the same part"),
    "two kinds": ({**GOOD, f"{QUERY}.diff": random(256, 256)}, "it holds both LoRA and difference"),
    "alpha and scale": (
        {**GOOD, f"{QUERY}.alpha": torch.tensor(1.0), f"{QUERY}.scale": torch.tensor(1.0)},
        "both an alpha and a scale",
    ),
    "alpha of two": ({**GOOD, f"{QUERY}.alpha": random(2)}, r"alpha is \[2\] and must be one number"),
    "alpha of infinity": ({**GOOD, f"{QUERY}.alpha": torch.tensor(float("inf"))}, "alpha is inf and must be a finite"),
    "whole numbers": (
        {**GOOD, f"{QUERY}.lora_A.weight": torch.ones(4, 256, dtype=torch.int8)},
        "is I8 and must be",
    ),
    "NaN": (
        {**GOOD, f"{QUERY}.lora_A.weight": torch.full((4, 256), float("nan"), dtype=torch.bfloat16)},
        r"1 tensor holds NaN or infinity: .*lora_A\.weight",
    ),
    "infinity": ({**GOOD, f"{QUERY}.lora_B.weight": random(256, 4) / 0}, r"holds NaN or infinity: .*lora_B\.weight"),
    "LoKr": (
        {f"{QUERY}.lokr_w1": random(4, 4), f"{QUERY}.lokr_w2": random(64, 32)},
        r"is \[256, 128\] and must",
    ),
    "LoKr of three": (
        {f"{QUERY}.lokr_w1": random(4, 4), f"{QUERY}.lokr_w2": random(192, 64)},
        r"product is \[768, 256\] and must be \[256, 256\]; those are the rows of query, key and value together",
    ),
    "half of LoKr": ({f"{QUERY}.lokr_w1": random(4, 4), f"{QUERY}.lokr_w2_a": random(64, 2)}, "without its lokr_w2_b"),
    "LoKr, both": (
        {f"{QUERY}.lokr_w1": random(4, 4), f"{QUERY}.lokr_w2": random(64, 64), f"{QUERY}.lokr_w1_a": random(4, 1)},
        "lokr_w1 is there whole and as a product",
    ),
    "half of LoHa": (
        {f"{QUERY}.hada_w1_a": random(256, 2), f"{QUERY}.hada_w1_b": random(2, 256)},
        "hada_w2_a and",
    ),
    "lengths": (
        {**GOOD, f"{QUERY}.dora_scale": random(256)},
        r"is \[256\] and must be \[256, 1\] or \[1, 256\]",
    ),
    "lengths alone": ({f"{QUERY}.dora_scale": random(256, 1)}, "dora_scale alone changes nothing"),
    "lengths twice": (
        {**GOOD, f"{QUERY}.dora_scale": random(256, 1), f"{QUERY}.lora_magnitude_vector": random(256)},
        "both a dora_scale and a lora_magnitude_vector",
    ),
    "two ways": (
        {**at("layers.0.attention.qkv", (4, 256), (768, 4)), **{name: 2 * values for name, values in GOOD.items()}},
        "change the same weights in different ways",
    ),
    "two prefixes": (
        {**GOOD, **at(f"diffusion_model.{QUERY}", (2, 256), (256, 2))},
        "change the same weights in different ways",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit(case: str, tmp_path: Path) -> None:
    tensors, message = BAD[case]
    with pytest.raises(AdapterError, match=f"(?s){message}") as raised:
        written(tmp_path / "style.safetensors", tensors)
    assert str(raised.value).startswith(f"{tmp_path}/style.safetensors")


@pytest.mark.parametrize("suffix", REFUSED)
def test_kinds_that_are_not_supported(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=re.escape(REFUSED[suffix])):
        written(tmp_path / "a.safetensors", {**GOOD, f"{QUERY}{suffix}": random(4, 4)})


def test_everything_at_once(tmp_path: Path) -> None:
    tensors = {**without("lora_A"), **at("layers.1.attention.to_q", (4, 1), (1, 4)), f"{QUERY}.oft_blocks": random(2)}
    with pytest.raises(AdapterError) as raised:
        written(tmp_path / "a.safetensors", {**tensors, "who": random(1)})
    said = str(raised.value).splitlines()
    assert said[0].endswith("does not fit, for 5 reasons:")
    assert [
        word for word in ("OFT", "who", "lora_A", "[4, 1]", "[1, 4]") if not any(word in line for line in said)
    ] == []


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_a_checkpoint_is_no_lora(component: str) -> None:
    word = component.replace("_", " ")
    with pytest.raises(AdapterError, match=rf"is no LoRA: it holds the weights of a {word}; give a checkpoint as"):
        open_adapter(PATH / component / FILES[component], specs())


def test_another_models_checkpoint_is_no_lora(tmp_path: Path) -> None:
    save_file({"double_blocks.0.img_attn.qkv.weight": random(4, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=r"is no LoRA: they are those of a Flux model"):
        open_adapter(tmp_path / "a.safetensors", specs())
    assert what_else(["vae.decoder.conv_in.weight"], specs()).startswith("it is a VAE")


def test_a_lora_is_no_checkpoint(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"it is a LoRA, which changes a model .*; give it with --lora"):
        plan(transformer_names(specs().transformer), open_source([tmp_path / "a.safetensors"]))


FILES_OF_NO_USE: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda file: None, "No such file"),
    "a pickle": (lambda file: file.write_bytes(b"PK\x03\x04" + bytes(30)), "is a PyTorch archive"),
    "cut off": (lambda file: (save_file(GOOD, file), file.write_bytes(file.read_bytes()[:-9])), "is truncated"),
    "a folder": (lambda file: file.mkdir(), "is no PEFT adapter: it lacks adapter_config.json and adapter_model"),
}


@pytest.mark.parametrize("case", FILES_OF_NO_USE)
def test_files_of_no_use(case: str, tmp_path: Path) -> None:
    make, message = FILES_OF_NO_USE[case]
    make(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_adapter(tmp_path / "a.safetensors", specs())


GGUF: dict[str, tuple[StateDict, Kind, dict[str, Any]]] = {
    "said": ({"blk.0.attn_q.weight": random(2, 32)}, Kind.F32, {"metadata": {"general.type": "adapter"}}),
    "llama.cpp's names": ({"layers.0.attention.to_q.weight.lora_a": random(4, 256)}, Kind.F32, {}),
    "names of safetensors": (GOOD, Kind.F32, {}),
    "names of safetensors, quantized": ({f"{QUERY}.lora_A.weight": random(4, 256)}, Kind.Q8_0, {}),
}


@pytest.mark.parametrize("case", GGUF)
def test_adapters_in_gguf(case: str, tmp_path: Path) -> None:
    """Told by what the file says of itself, or by the names of its tensors."""
    tensors, kind, beside = GGUF[case]
    gguf_files.write(tmp_path / "a.gguf", tensors, kind, **beside)
    with pytest.raises(CheckpointError, match=r"a\.gguf is a LoRA in GGUF, which is not supported; use it as safeten"):
        open_adapter(tmp_path / "a.gguf", specs())


def test_an_alpha_of_nothing_is_noted(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"{QUERY}: an alpha of 0, so nothing is added there"):
        adapter = written(tmp_path / "a.safetensors", {**GOOD, f"{QUERY}.alpha": torch.tensor(0.0)})
    source = open_source([PATH / "transformer" / FILES["transformer"]])
    assert added([(adapter, 1.0)], "transformer")(source) is source


def test_the_same_change_in_both_namings_counts_once(tmp_path: Path) -> None:
    """As some converters write it; the same bits, so it is clear what is meant."""
    up = random(768, 4)
    down = random(4, 256)
    thirds = {
        f"layers.0.attention.{part}.{suffix}": values.clone()
        for part, rows in zip(("to_q", "to_k", "to_v"), up.split(256), strict=True)
        for suffix, values in (("lora_A.weight", down), ("lora_B.weight", rows))
    }
    fused = {"layers.0.attention.qkv.lora_A.weight": down.clone(), "layers.0.attention.qkv.lora_B.weight": up}
    once, both = written(tmp_path / "a.safetensors", thirds), written(tmp_path / "b.safetensors", thirds | fused)
    name = "layers.0.attention.to_k.weight"
    assert (rows_of(name, (once, 1.0)) == rows_of(name, (both, 1.0))).all()
    assert sum(map(len, both.modules["transformer"].values())) in (1, 3)


def test_a_product_that_overflows(tmp_path: Path) -> None:
    """Every number of the file is finite."""
    adapter = opened(tmp_path, QUERY, {"lora_A.weight": random(4, 256) * 1e30, "lora_B.weight": random(256, 4) * 1e30})
    with pytest.raises(AdapterError, match=rf"{QUERY}\.weight: with what .* at {QUERY} some weights are infinite"):
        rows_of(f"{QUERY}.weight", (adapter, 1.0))
    with pytest.raises(ValueError, match="the scale of a must be a finite number, got inf"):
        added([(adapter, float("inf"))], "transformer")
