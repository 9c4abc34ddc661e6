"""Names of adapters: every spelling of one LoRA makes the same weights, to the bit, and diffusers' reading agrees."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders import ZImageLoraLoaderMixin

from max_zimage.checkpoint.adapters import Adapter, added, changes
from max_zimage.checkpoint.adapters.modules import COMPONENTS, modules
from max_zimage.checkpoint.adapters.spelling import DOTTED, UNDERSCORED, spellings
from max_zimage.checkpoint.expand import transformer_names
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.plan import plan
from max_zimage.checkpoint.tensors import Files, Source
from tests.references.adapters import (
    AB,
    DEFAULT,
    DOWN_UP,
    Factors,
    FloatArray,
    factors,
    fused,
    original,
    original_source,
    rows_of,
    source,
    specs,
    spelled,
    state,
    written,
)
from tests.references.tiny import StateDict

ALPHA = 3.0  # the rank: most writers leave it out then

LORA = factors(rank=3)
FUSED = fused(LORA)

SPELLINGS: Mapping[str, StateDict] = {
    "diffusers": spelled(LORA, "transformer.", AB),
    "OneTrainer, legacy": spelled(LORA, "transformer.", DOWN_UP, alpha=ALPHA),
    "ai-toolkit": spelled(LORA, "diffusion_model.", AB),
    "OneTrainer, Comfy": spelled(LORA, "diffusion_model.", AB, alpha=ALPHA),
    "original, dotted": spelled(FUSED, "diffusion_model.", AB, rename=original),
    "original, dotted, alpha": spelled(FUSED, "diffusion_model.", DOWN_UP, rename=original, alpha=ALPHA),
    "DiffSynth": spelled(LORA, "", DEFAULT),
    "OneTrainer, original": spelled(LORA, "", AB, alpha=ALPHA),
    "musubi": spelled(LORA, "lora_unet_", DOWN_UP, underscored=True, alpha=ALPHA),
    "original, underscored": spelled(FUSED, "lora_unet_", DOWN_UP, rename=original, underscored=True, alpha=ALPHA),
    "two underscores": spelled(LORA, "lora_unet__", DOWN_UP, underscored=True),
    "OneTrainer, older": spelled(LORA, "lora_transformer_", DOWN_UP, underscored=True),
    "LyCORIS": spelled(LORA, "lycoris_", DOWN_UP, underscored=True, alpha=ALPHA),
    **{f"behind {prefix}": spelled(LORA, prefix, AB) for prefix in DOTTED["transformer"][3:]},
    **{
        f"suffix {suffixes[0]}": spelled(LORA, "transformer.", suffixes)
        for suffixes in (
            (".lora_down.default.weight", ".lora_up.default.weight"),
            (".lora.down.weight", ".lora.up.weight"),
            ("_lora.down.weight", "_lora.up.weight"),
            (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
            (".lora_A", ".lora_B"),
        )
    },
}


def bits(adapter: Adapter, base: Source) -> dict[str, FloatArray]:
    """Every parameter of the transformer as graphs are given it."""
    checked = plan(transformer_names(specs().transformer), base, [added([(adapter, 0.7)], "transformer")])
    return {name: buffer.to_numpy() for name, buffer in load(checked, "float32").items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, FloatArray]:
    return bits(written(folder / "expected.safetensors", SPELLINGS["diffusers"]), source())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_makes_the_same_weights(
    spelling: str, folder: Path, expected: dict[str, FloatArray], tmp_path: Path
) -> None:
    adapter = written(tmp_path / "a.safetensors", SPELLINGS[spelling])
    named = SPELLINGS[spelling].keys()
    assert len(adapter.modules["transformer"]) == len([name for name in named if "down" in name or "lora_A" in name])
    for base in (source(), original_source(folder)):
        found = bits(adapter, base)
        assert found.keys() == expected.keys()
        assert [name for name in found if not np.array_equal(found[name], expected[name])] == []


@pytest.mark.parametrize("spelling", ["diffusers", "original, dotted"])
def test_pieces_are_the_same_whatever_rows_are_stacked_with(
    spelling: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 39 rows, which fit neither a third of the fused matrix nor the whole; and reading some rows alone."""
    monkeypatch.setattr(changes, "_CHUNK", 39 * specs().transformer.dim)
    adapter = written(tmp_path / "a.safetensors", SPELLINGS[spelling])
    parts = [rows_of(f"layers.0.attention.{part}.weight", (adapter, 1.0)) for part in ("to_q", "to_k", "to_v")]
    whole = added([(adapter, 1.0)], "transformer")(original_source(folder)).tensors["layers.0.attention.qkv.weight"]
    stacked = np.concatenate(parts)
    filled = np.empty(stacked.size, np.float32)
    whole.fill(filled, Files())
    assert np.array_equal(filled.reshape(stacked.shape), stacked)
    dim = specs().transformer.dim
    for begin, end in ((0, 1), (38, 41), (dim - 5, dim + 7), (3 * dim - 1, 3 * dim), (0, 3 * dim)):
        assert np.array_equal(whole.rows(begin, end, Files()), stacked[begin:end])


def test_diffusers_reads_the_same(tmp_path: Path) -> None:
    """The spellings that it converts rightly, with an alpha that is not the rank."""
    blocks = tuple(name for name in LORA.down if "layer" in name or "refiner" in name)
    lora = Factors({name: LORA.down[name] for name in blocks}, {name: LORA.up[name] for name in blocks})
    bare = partial(spelled, lora, "")
    cases = {
        "transformer.": spelled(lora, "transformer.", AB),
        "diffusion_model.": spelled(lora, "diffusion_model.", AB),
        "diffusion_model., alpha": spelled(lora, "diffusion_model.", AB, alpha=2.0),
        "attention.out": spelled(
            Factors({"layers.0.attention.to_out.0": lora.down["layers.0.attention.to_out.0"]}, lora.up),
            "diffusion_model.",
            DOWN_UP,
            rename=original,
            alpha=2.0,
        ),
        "lora_unet_": spelled(LORA, "lora_unet_", DOWN_UP, underscored=True, alpha=2.0),
        "lora_unet_, fused": spelled(
            fused(lora), "lora_unet_", DOWN_UP, rename=original_of_blocks, underscored=True, alpha=2.0
        ),
        "bare, alpha": bare(DOWN_UP, alpha=2.0),
        "bare, default": bare(DEFAULT),
    }
    for case, tensors in cases.items():
        theirs = ZImageLoraLoaderMixin.lora_state_dict(dict(tensors))
        adapter = written(tmp_path / f"{len(case)}.safetensors", tensors)
        names = sorted(name.split(".lora_A.")[0] for name in theirs if ".lora_A." in name)
        assert names, case
        assert all(name.startswith("transformer.") for name in names), case
        changed = {
            name for each in adapter.modules["transformer"].values() for change in each for name in _parts(change)
        }
        assert changed == {f"{name.removeprefix('transformer.')}.weight" for name in names}, case
        for name in names:
            delta = theirs[f"{name}.lora_B.weight"].double() @ theirs[f"{name}.lora_A.weight"].double()
            weight = f"{name.removeprefix('transformer.')}.weight"
            found = rows_of(weight, (adapter, 1.0)).astype(np.float64) - state()[weight].double().numpy()
            assert np.abs(found - delta.numpy()).max() < 1e-6, (case, name)


def original_of_blocks(module: str) -> str:
    """Diffusers' converter knows the original names of attention alone."""
    return original(module) if ".attention." in module else module


def _parts(change: changes.Change) -> list[str]:
    return [stretch.name for stretch in change.target.stretches]


def test_text_encoders(tmp_path: Path) -> None:
    lora = factors(component="text_encoder")
    plain = Factors(*({name.removeprefix("model."): each[name] for name in each} for each in (lora.down, lora.up)))
    name = "model.layers.1.self_attn.k_proj.weight"
    expected = state("text_encoder")[name].double().numpy() + lora.deltas(2 / 3)[name.removesuffix(".weight")]
    found = []
    for index, (prefix, underscored) in enumerate(
        (
            ("text_encoders.qwen3_4b.transformer.model.", False),
            ("text_encoder.", False),
            ("text_encoder.model.", False),
            ("base_model.model.text_encoder.", False),
            ("base_model.model.model.", False),
            ("lora_te_", True),
        )
    ):
        tensors = spelled(plain, prefix, DOWN_UP, underscored=underscored, alpha=2.0)
        adapter = written(tmp_path / f"{index}.safetensors", tensors)
        assert set(adapter.modules) == {"text_encoder"}
        assert len(adapter.modules["text_encoder"]) == len(plain.down)
        found.append(rows_of(name, (adapter, 1.0), component="text_encoder"))
        assert np.abs(found[-1] - expected).max() < 1e-6
    assert all(np.array_equal(each, found[0]) for each in found)


def test_no_two_modules_are_spelled_alike() -> None:
    """Neither as they are nor with underscores, in the published model's shape."""
    known = spellings(specs())
    for component in COMPONENTS:
        for module in modules(specs(), component):
            for prefix in DOTTED[component]:
                assert known[prefix + module.name] == module
            for prefix in UNDERSCORED[component]:
                assert known[prefix + module.name.replace(".", "_")] == module


def test_an_adapter_of_both(tmp_path: Path) -> None:
    """What belongs to the text encoder reaches it alone."""
    names = ("layers.0.self_attn.q_proj", "layers.0.attention.to_q")
    wide, dim = specs().text_encoder, specs().transformer.dim
    query = wide.num_heads * wide.head_dim
    tensors = {
        f"text_encoder.{names[0]}.lora_A.weight": torch.ones(1, wide.hidden_size),
        f"text_encoder.{names[0]}.lora_B.weight": torch.ones(query, 1),
        f"transformer.{names[1]}.lora_A.weight": torch.ones(1, dim),
        f"transformer.{names[1]}.lora_B.weight": torch.ones(dim, 1),
    }
    adapter = written(tmp_path / "a.safetensors", tensors)
    assert {component: list(found) for component, found in adapter.modules.items()} == {
        "text_encoder": [names[0]],
        "transformer": [names[1]],
    }
    for component, name in (("text_encoder", f"model.{names[0]}"), ("transformer", names[1])):
        before = source(component)
        after = added([(adapter, 1.0)], component)(before)
        assert [each for each in after.tensors if after.tensors[each] is not before.tensors[each]] == [f"{name}.weight"]
