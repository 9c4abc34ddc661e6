"""Weights in the order of the kernels, number by number, and which layers take them so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.experimental.nn import Linear
from max.graph import DeviceRef
from references.tiny import TinySpec, write_tiny

from graphs import ops
from graphs.layers import build
from graphs.linear import GatedLinear, PackedGatedLinear, PackedLinear, gated_linear, linear
from max_zimage.checkpoint import LoadPlan, load, plan
from max_zimage.config import model_specs
from max_zimage.model_files import CONFIG_FILES, find_component_files, read_config
from max_zimage.safetensors_files import scan
from max_zimage.weight_names import TEXT_ENCODER, TRANSFORMER
from max_zimage.weight_places import text_encoder_names, transformer_names

# The feed-forward layer is 341 wide: 2 x 341 outputs are not whole panels, 341 inputs not whole pairs.
WIDTHS = {"transformer": {"attention.qkv", "attention.out"}}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadPlan]:
    """Of a checkpoint whose transformer's feed-forward layer does not fit and whose text encoder's fits."""
    folder: Path = tmp_path_factory.mktemp("packing")
    write_tiny(folder, TinySpec(head_dim=64, refiner_layers=1))
    specs = model_specs(**{component: read_config(folder, component) for component in CONFIG_FILES})
    names = {
        "text_encoder": text_encoder_names(specs.text_encoder, 2),
        "transformer": transformer_names(specs.transformer),
    }
    return {name: plan(listed, scan(find_component_files(folder, name))) for name, listed in names.items()}


def bits(buffer: Buffer) -> torch.Tensor:
    return torch.from_numpy(buffer.view(DType.uint16, buffer.shape).to_numpy().copy()).int()


def unpacked(panels: torch.Tensor, gated: bool) -> torch.Tensor:
    """[panels, pairs, 64] back to [outputs, inputs], one number at a time."""
    count, pairs, _ = panels.shape
    matrix = torch.empty(count * 32, pairs * 2, dtype=panels.dtype)
    for panel in range(count):
        for column in range(32):
            row = panel * 32 + column
            if gated:
                row = panel * 16 + column % 16 + (count * 16 if column >= 16 else 0)
            for odd in range(2):
                matrix[row, odd::2] = panels[panel, :, 2 * column + odd]
    return matrix


@pytest.mark.parametrize("component", ["text_encoder", "transformer"])
def test_matrices_are_packed_where_they_fit_and_nothing_else_is(plans: dict[str, LoadPlan], component: str) -> None:
    rows = TEXT_ENCODER if component == "text_encoder" else TRANSFORMER
    packings = {row.engine.partition("}.")[2]: row.packing for row in rows}
    plain, packed = (load(plans[component], "bfloat16", packed=choice) for choice in (False, True))
    assert plain.keys() == packed.keys()
    changed = set()
    for name, buffer in packed.items():
        kind = next((leaf for leaf in packings if leaf and name.endswith(leaf)), "")
        before = bits(plain[name])
        if buffer.rank == 3 and packings.get(kind):
            changed.add(kind.removesuffix(".weight"))
            assert torch.equal(unpacked(bits(buffer), packings[kind] == "gated"), before), name
        else:
            assert buffer.shape == plain[name].shape and torch.equal(bits(buffer), before), name
            assert not packings.get(kind) or before.shape[0] % 32 or before.shape[1] % 2, name
    assert changed == WIDTHS.get(component, {kind.removesuffix(".weight") for kind, how in packings.items() if how})


def test_float32_is_loaded_as_it_is(plans: dict[str, LoadPlan]) -> None:
    loaded = load(plans["transformer"], "float32", packed=True)
    assert {buffer.rank for buffer in loaded.values()} <= {1, 2}


def test_weights_are_packed_where_the_op_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "instructions", lambda: frozenset({"avx512_bf16"}))

    def made(dtype: DType, inputs: int, outputs: int) -> tuple[type, type]:
        layers = [
            build(lambda make=make: make(inputs, outputs), dtype, DeviceRef.CPU()) for make in (linear, gated_linear)
        ]
        return type(layers[0]), type(layers[1])

    assert made(DType.bfloat16, 64, 96) == (PackedLinear, PackedGatedLinear)
    assert made(DType.bfloat16, 64, 48) == (Linear, PackedGatedLinear)  # 48 gates and 48 ups are three panels
    assert made(DType.bfloat16, 63, 96) == made(DType.float32, 64, 96) == (Linear, GatedLinear)
    with ops.without_kernels():
        assert made(DType.bfloat16, 64, 96) == (Linear, GatedLinear)
    monkeypatch.setattr(ops, "instructions", lambda: frozenset({"avx512f"}))
    assert made(DType.bfloat16, 64, 96) == (Linear, GatedLinear)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="outputs divisible by 32 and inputs divisible by 2, got 40 and 64"):
        ops.packed_shape(64, 40)
