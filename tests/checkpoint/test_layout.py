"""Weights in the order of the kernels, number by number, and which layers take them so."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.experimental.nn import Linear
from max.graph import DeviceRef

from max_zimage.checkpoint import layout
from max_zimage.checkpoint.config import model_specs
from max_zimage.checkpoint.expand import text_encoder_names, transformer_names, vae_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.locate import CONFIG_FILES, find_component_files, read_config
from max_zimage.checkpoint.names import TEXT_ENCODER, TRANSFORMER, VAE
from max_zimage.checkpoint.plan import LoadPlan, plan
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.graphs import kernel_library
from max_zimage.graphs.layers import build
from max_zimage.graphs.linear import (
    GatedLinear,
    PackedBiasedLinear,
    PackedGatedLinear,
    PackedLinear,
    gated_linear,
    linear,
)
from max_zimage.graphs.model import vae_blocks
from max_zimage.graphs.model.vae_blocks import CudnnConv, PackedConv, PlainConv, convolution
from tests.references.tiny import TinySpec, write_tiny

HOST = DeviceRef.CPU()
ROWS = {"text_encoder": TEXT_ENCODER, "transformer": TRANSFORMER, "vae": VAE}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadPlan]:
    """Of a checkpoint whose transformer's feed-forward layer is 341 wide: neither whole panels nor whole pairs."""
    folder: Path = tmp_path_factory.mktemp("packing")
    write_tiny(folder, TinySpec(head_dim=64, refiner_layers=1))
    specs = model_specs(**{component: read_config(folder, component) for component in CONFIG_FILES})
    names = {
        "text_encoder": text_encoder_names(specs.text_encoder, 2),
        "transformer": transformer_names(specs.transformer),
        "vae": vae_names(specs.vae),
    }
    return {name: plan(listed, open_source(find_component_files(folder, name))) for name, listed in names.items()}


def numbers(buffer: Buffer) -> torch.Tensor:
    """Float32 numbers, or bfloat16's bits."""
    if buffer.dtype == DType.bfloat16:
        return torch.from_numpy(buffer.view(DType.uint16, buffer.shape).to_numpy().copy()).int()
    return torch.from_numpy(buffer.to_numpy().copy())


def unpacked(panels: torch.Tensor, shape: list[int], gated: bool) -> torch.Tensor:
    """[panels, units, numbers] back to [outputs, inputs], one number at a time; what fills up must be zero."""
    count, units, width = panels.shape
    (outputs, inputs), per_unit = shape, width // 32
    matrix = torch.zeros(outputs, inputs, dtype=panels.dtype)
    half = outputs // 2
    for panel in range(count):
        for column in range(32):
            row = panel * 32 + column
            inside = row < outputs
            if gated:
                row = panel * 16 + column % 16
                inside, row = row < half, row + (half if column >= 16 else 0)
            for i in range(per_unit):
                taken = panels[panel, :, per_unit * column + i]
                if not inside:
                    assert not taken.any()
                    continue
                there = len(range(i, inputs, per_unit))
                matrix[row, i::per_unit] = taken[:there]
                assert not taken[there:].any()
                assert there <= units
    return matrix


@pytest.mark.parametrize("piece", [1, layout._PIECE])  # a panel at a time, which cuts heads; and the whole
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("component", ROWS)
def test_what_has_a_packing_is_packed_where_it_fits(
    plans: dict[str, LoadPlan], component: str, dtype: ModelDtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_PIECE", piece)
    packings = {row.engine.partition("}.")[2] or row.engine: row.packing for row in ROWS[component]}
    plain, packed = (load(plans[component], dtype, to_pack=choice) for choice in (False, True))
    assert plain.keys() == packed.keys()
    for name, buffer in packed.items():
        packing = packings[next(leaf for leaf in sorted(packings, key=len, reverse=True) if name.endswith(leaf))]
        before, after = numbers(plain[name]), numbers(buffer)
        if packing == "taps":
            height, width, inputs, outputs = before.shape
            for tap in range(height * width):
                matrix = before[tap // width, tap % width].T
                assert torch.equal(unpacked(after[:, tap], [outputs, inputs], gated=False), matrix), name
        elif packing and (dtype == "float32" or before.shape[1] % 2 == 0):
            assert torch.equal(unpacked(after, list(before.shape), packing == "gated"), before), name
        else:
            assert torch.equal(after, before), name  # false for other shapes


@pytest.mark.parametrize("dtype", DTYPES)
def test_filters_stay_as_the_files_have_them_for_cudnn(plans: dict[str, LoadPlan], dtype: ModelDtype) -> None:
    turned, kept = (load(plans["vae"], dtype, keep_filters=choice) for choice in (False, True))
    assert turned.keys() == kept.keys()
    filters = {name for name, buffer in turned.items() if buffer.rank == 4}
    assert len(filters) > 20
    for name, buffer in kept.items():
        before, after = numbers(turned[name]), numbers(buffer)
        assert torch.equal(after, before.permute(3, 2, 0, 1) if name in filters else before), name


def test_convolutions_on_an_nvidia_gpu_are_cudnns(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> PlainConv | PackedConv:
        return build(lambda: convolution(3, 5, kernel=1), DType.float16, HOST)

    assert (type(made()), list(map(int, made().weight.shape))) == (PlainConv, [1, 1, 3, 5])
    monkeypatch.setattr(vae_blocks, "is_nvidia", lambda _: True)
    assert (type(made()), list(map(int, made().weight.shape))) == (CudnnConv, [5, 3, 1, 1])


def test_weights_are_packed_where_the_op_can_run() -> None:
    def made(dtype: DType, inputs: int, outputs: int) -> tuple[type, ...]:
        makers = (linear, gated_linear, convolution)
        return tuple(type(build(partial(make, inputs, outputs), dtype, HOST)) for make in makers)

    ours, plain = (PackedLinear, PackedGatedLinear, PackedConv), (Linear, GatedLinear, PlainConv)
    assert made(DType.bfloat16, 64, 96) == made(DType.float32, 63, 43) == ours
    assert made(DType.bfloat16, 63, 96) == (Linear, GatedLinear, PackedConv)  # rows of odd length are no pairs
    assert made(DType.float16, 64, 96) == plain
    assert not kernel_library.uses_cpu_kernels(DType.float32, DeviceRef.GPU())
    with kernel_library.without_kernels():
        assert made(DType.bfloat16, 64, 96) == made(DType.float32, 64, 96) == plain


def test_a_matrix_with_its_bias() -> None:
    biased, plain = (build(partial(linear, 8, 8, bias=bias), DType.float32, HOST) for bias in (True, False))
    assert type(biased) is PackedBiasedLinear
    assert [name for name, _ in biased.parameters] == ["weight", "bias"]
    assert [name for name, _ in plain.parameters] == ["weight"]
