"""A DiffusionGemma's files to the parameters of its graphs: names, ties, forms of the experts, quantized files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from max.dtype import DType
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.layout import packed
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.names import Packing
from max_zimage.checkpoint.plan import plan
from max_zimage.diffusion_gemma.config_file import read_file
from max_zimage.diffusion_gemma.names import names
from max_zimage.diffusion_gemma.tied import arranged
from max_zimage.diffusion_gemma.weights import find_files, plan_weights
from max_zimage.errors import CheckpointError
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec
from max_zimage.graphs.text_ops import expert_shapes
from tests.references.diffusion_gemmas import USUAL, write
from tests.references.engine_weights import StateDict
from tests.references.quantized import FORMATS
from tests.references.quantized import write as write_quantized

DECODER, ENCODER = "model.decoder.", "model.encoder.language_model."
LAYER = f"{DECODER}layers.3."
Numbers = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gemma")
    write(directory, {**USUAL, "num_hidden_layers": 6}, 32, seed=0)
    return directory


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> DiffusionGemmaSpec:
    return read_file(checkpoint).spec


@pytest.fixture(scope="module")
def state(checkpoint: Path) -> StateDict:
    return load_file(checkpoint / "model.safetensors")


def loaded(spec: DiffusionGemmaSpec, file: Path) -> Numbers:
    """What graphs are given, unpacked and in float32."""
    source = open_source([file])
    checked = plan(names(spec, source.tensors), source, [arranged(spec)])
    return {name: data.to_numpy().copy() for name, data in load(checked, "float32").items()}


def of(spec: DiffusionGemmaSpec, state: StateDict, tmp_path: Path) -> Numbers:
    save_file({name: values.clone() for name, values in state.items()}, tmp_path / "model.safetensors")
    return loaded(spec, tmp_path / "model.safetensors")


def expected(state: StateDict) -> Numbers:
    """What the graphs must be given for layer 3, a sliding one, for layer 5, a full one, and at the ends."""

    def cat(*parts: str) -> NDArray[np.float32]:
        return torch.cat([state[part] for part in parts]).numpy()

    full = f"{DECODER}layers.5."
    own = f"{DECODER}self_conditioning."
    products = ("q_proj", "k_proj", "v_proj")
    return {
        "decoder.embed_tokens.weight": state[f"{DECODER}embed_tokens.weight"].numpy(),
        "decoder.norm.weight": state[f"{DECODER}norm.weight"].numpy(),
        "decoder.layers.3.self_attn.qkv_proj.weight": cat(*(f"{LAYER}self_attn.{each}.weight" for each in products)),
        "decoder.layers.5.self_attn.qkv_proj.weight": cat(*(f"{full}self_attn.{each}.weight" for each in products[:2])),
        "decoder.layers.3.mlp.gate_up_proj.weight": cat(f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"),
        "decoder.layers.3.experts.gate_up_proj": state[f"{LAYER}experts.gate_up_proj"].numpy(),
        "decoder.layers.3.experts.down_proj": state[f"{LAYER}experts.down_proj"].numpy(),
        "decoder.self_conditioning.mlp.gate_up_proj.weight": cat(f"{own}gate_proj.weight", f"{own}up_proj.weight"),
        "decoder_scalars": cat(*(f"{DECODER}layers.{index}.layer_scalar" for index in range(6))),
        "encoder_scalars": cat(*(f"{ENCODER}layers.{index}.layer_scalar" for index in range(6))),
    }


def check(found: Numbers, state: StateDict) -> None:
    for name, values in expected(state).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_every_parameter_comes_from_its_tensors(spec: DiffusionGemmaSpec, state: StateDict, checkpoint: Path) -> None:
    assert not torch.equal(state[f"{LAYER}layer_scalar"], state[f"{ENCODER}layers.3.layer_scalar"])
    check(loaded(spec, checkpoint / "model.safetensors"), state)


def test_the_vision_tower_is_skipped_and_said(spec: DiffusionGemmaSpec, state: StateDict, checkpoint: Path) -> None:
    checked = plan_weights(spec, find_files(checkpoint))
    vision = {name for name in state if "vision" in name}
    assert checked.dropped == dict.fromkeys(vision, "of the vision tower; this engine reads text only")
    assert checked.format == "names of the decoder behind 'model.'"


def test_experts_are_packed_one_by_one(spec: DiffusionGemmaSpec, state: StateDict, checkpoint: Path) -> None:
    source = open_source([checkpoint / "model.safetensors"])
    checked = plan(names(spec, source.tensors), source, [arranged(spec)])
    wanted: dict[str, Packing] = {"gate_up_proj": "gated", "down_proj": "panels"}
    found = load(checked, "float32", to_pack=True, only=[f"decoder.layers.3.experts.{name}" for name in wanted])
    shapes = expert_shapes(spec.num_experts, spec.hidden_size, spec.expert_size, DType.float32)
    for (name, packing), shape in zip(wanted.items(), shapes, strict=True):
        ours = found[f"decoder.layers.3.experts.{name}"].to_numpy()
        assert ours.shape == shape
        for mine, matrix in zip(ours, state[f"{LAYER}experts.{name}"], strict=True):
            np.testing.assert_array_equal(mine, packed(matrix.numpy(), packing).to_numpy())


def under_the_encoder(state: StateDict) -> StateDict:
    own = ("self_conditioning", "layer_scalar")
    return {
        name if any(each in name for each in own) else name.replace(DECODER, ENCODER): values
        for name, values in state.items()
    }


def stored_twice(state: StateDict) -> StateDict:
    return {**under_the_encoder(state), **state}


def without_a_prefix(state: StateDict) -> StateDict:
    return {name.removeprefix("model."): values for name, values in state.items()}


def with_a_head(state: StateDict) -> StateDict:
    return {**state, "lm_head.weight": state[f"{DECODER}embed_tokens.weight"]}


def without_vision(state: StateDict) -> StateDict:
    return {name: values for name, values in state.items() if "vision" not in name}


def one_by_one(state: StateDict) -> StateDict:
    """Experts as quantized files have them."""
    found: StateDict = {}
    for name, values in state.items():
        if not name.endswith(("gate_up_proj", "experts.down_proj")):
            found[name] = values
            continue
        for number, matrix in enumerate(values):
            place = f"{name.rpartition('.')[0]}.{number}"
            parts = dict(zip(("gate", "up"), matrix.chunk(2), strict=True)) if "gate_up" in name else {"down": matrix}
            found |= {f"{place}.{half}_proj.weight": part for half, part in parts.items()}
    return found


@pytest.mark.parametrize(
    "other", [under_the_encoder, stored_twice, without_a_prefix, with_a_head, without_vision, one_by_one]
)
def test_other_ways_to_store_the_same(
    other: Callable[[StateDict], StateDict], spec: DiffusionGemmaSpec, state: StateDict, tmp_path: Path
) -> None:
    check(of(spec, other(state), tmp_path), state)


@pytest.mark.parametrize("form", ["ModelOpt NVFP4", "compressed-tensors fp8", "fine-grained fp8"])
def test_quantized_experts(form: str, spec: DiffusionGemmaSpec, state: StateDict, tmp_path: Path) -> None:
    """As the published model's quantized files have them: experts one by one, the rest as it is."""
    file = tmp_path / "model.safetensors"
    decoded = write_quantized(FORMATS[form], one_by_one(state), file, where=".experts.")
    found = loaded(spec, file)
    place = f"{LAYER}experts."
    experts = range(spec.num_experts)
    gate_up = torch.stack(
        [torch.cat([decoded[f"{place}{number}.{half}_proj.weight"] for half in ("gate", "up")]) for number in experts]
    )
    down = torch.stack([decoded[f"{place}{number}.down_proj.weight"] for number in experts])
    name = "decoder.layers.3.experts."
    np.testing.assert_allclose(found[f"{name}gate_up_proj"], gate_up, rtol=1e-6)
    np.testing.assert_allclose(found[f"{name}down_proj"], down, rtol=1e-6)
    assert not np.array_equal(gate_up, state[f"{LAYER}experts.gate_up_proj"])


def untied(name: str, copy: str) -> Callable[[StateDict], StateDict]:
    def change(state: StateDict) -> StateDict:
        values = state[name].clone()
        values.view(-1)[-1] += 1
        return {**state, copy: values}

    return change


def without(name: str) -> Callable[[StateDict], StateDict]:
    return lambda state: {key: values for key, values in state.items() if key != name}


def plus(name: str, *shape: int) -> Callable[[StateDict], StateDict]:
    return lambda state: {**state, name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            untied(f"{DECODER}embed_tokens.weight", "lm_head.weight"),
            "lm_head.weight differs from model.decoder.embed_tok",
        ),
        (
            untied(f"{LAYER}router.scale", f"{ENCODER}layers.3.router.scale"),
            "layers.3.router.scale differs from model.de",
        ),
        (
            plus("lm_head.weight", 3, 3),
            "lm_head.weight differs from model.decoder.embed_tokens.weight, which it is tied to",
        ),
        (without(f"{LAYER}router.scale"), "1 missing\n  missing: model.decoder.layers.3.router.scale"),
        (without(f"{ENCODER}layers.3.layer_scalar"), f"1 missing\n  missing: {ENCODER}layers.3.layer_scalar"),
        (
            plus(f"{DECODER}layers.5.self_attn.v_proj.weight", 64, 128),
            "1 unexpected\n  unexpected: model.decoder.layers.5",
        ),
        (plus(f"{LAYER}mlp.up_proj.weight", 127, 128), "mlp.up_proj.weight is [127, 128] and must be [128, 128]"),
        (plus(f"{LAYER}experts.down_proj", 8, 64, 128), "experts.down_proj is [8, 64, 128] and must be [8, 128, 64]"),
        (
            lambda state: without(f"{LAYER}experts.4.up_proj.weight")(one_by_one(state)),
            "model.decoder.layers.3.experts.4.up_proj.weight is missing, and other experts of this layer are there",
        ),
        (
            lambda state: plus(f"{LAYER}experts.4.up_proj.weight", 64, 64)(one_by_one(state)),
            "model.decoder.layers.3.experts.4.up_proj.weight is [64, 64] and must be [64, 128]",
        ),
        (lambda _: {"model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4)}, "holds none of the expected tensors"),
    ],
)
def test_what_does_not_fit_is_said(
    change: Callable[[StateDict], StateDict], said: str, spec: DiffusionGemmaSpec, state: StateDict, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        of(spec, change(state), tmp_path)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such directory; fetch a checkpoint first"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        find_files(tmp_path)
