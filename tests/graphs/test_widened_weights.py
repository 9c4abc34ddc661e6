"""Weights in eight bits as an accelerator has them, on a CPU: what is widened, and the layers around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.checkpoint.quantized import quantized
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs import gpu_ops
from max_zimage.graphs.kernel_library import without_kernels
from max_zimage.graphs.layers import build
from max_zimage.graphs.linear import (
    WidenedGatedLinear,
    WidenedLinear,
    codes_of,
    gated_linear,
    linear,
    stored_as,
    widened,
)
from tests.references import code_products as references
from tests.references.op_modules import TORCH, Makers, Op, Ops, Typed, Wanted, run

HOST = DeviceRef.CPU()
Models = Mapping[str, Model]
INPUTS = 64
WIDTHS = (48, 37)
"""Outputs: whole vectors of codes, and others."""
HIDDEN = 21


def types(dtype: DType, outputs: int) -> list[TensorType]:
    return [
        TensorType(dtype, ["items", "length", INPUTS], HOST),
        TensorType(DType.int8, [INPUTS, outputs], HOST),
        TensorType(DType.float32, [outputs], HOST),
    ]


def alone(dtype: DType, outputs: int) -> Typed:
    return Op(lambda x, codes, scales: gpu_ops.widened(codes, scales, x), types(dtype, outputs))


def layer(made: Callable[[], WidenedLinear], outputs: int) -> Typed:
    inner = build(made, DType.float32, HOST)

    def call(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        inner.weight, inner.scales = codes, scales
        return inner(x)

    return Op(call, types(DType.float32, outputs))


def twin(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    with without_kernels():
        return widened(codes, scales, x)


def makers_of(_: ModelDtype) -> Makers:
    return {
        **{f"float32 {width}": partial(alone, DType.float32, width) for width in WIDTHS},
        **{f"bfloat16 {width}": partial(alone, DType.bfloat16, width) for width in WIDTHS},
        "twin": lambda: Op(twin, types(DType.bfloat16, WIDTHS[0])),
        "linear": lambda: layer(lambda: WidenedLinear(INPUTS, WIDTHS[1]), WIDTHS[1]),
        "gated": lambda: layer(lambda: WidenedGatedLinear(INPUTS, HIDDEN), 2 * HIDDEN),
    }


OPS = Wanted(makers=makers_of, dtypes=["float32"])


@pytest.fixture(scope="module")
def compiled(compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Models:
    return compiled_ops["test_widened_weights", "float32"].models


def values(*shape: int, seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(weight: npt.NDArray[np.float32]) -> tuple[Buffer, Buffer]:
    codes = codes_of("int8_rows", weight.shape[1])
    assert codes is not None
    return quantized(weight, "panels", codes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("outputs", WIDTHS)
def test_what_is_widened_is_rounded_once(compiled: Models, dtype: ModelDtype, outputs: int) -> None:
    weight = values(outputs, INPUTS, seed=1)
    weight[3] = 0
    wide = torch.from_numpy(references.weights(weight, 8, INPUTS).T).float()  # the product of two float32 numbers
    x = Buffer.zeros([1, 1, INPUTS], DType[dtype])
    got = run(compiled[f"{dtype} {outputs}"], x, *stored(weight))
    assert torch.equal(got, wide.to(TORCH[dtype]).double())


def test_the_twin_makes_the_same(compiled: Models) -> None:
    given = Buffer.zeros([1, 1, INPUTS], DType.bfloat16), *stored(values(WIDTHS[0], INPUTS, seed=1))
    ours, plain = (run(compiled[name], *given) for name in (f"bfloat16 {WIDTHS[0]}", "twin"))
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", ["linear", "gated"])
@pytest.mark.parametrize(("items", "length"), [(1, 1), (2, 13)])
def test_layers_multiply_by_what_is_widened(compiled: Models, name: str, items: int, length: int) -> None:
    x, weight = values(items, length, INPUTS, seed=2), values({"linear": 37, "gated": 42}[name], INPUTS, seed=3)
    both = x.astype(np.float64) @ references.weights(weight, 8, INPUTS).T
    gate, up = np.split(both, 2, axis=-1) if name == "gated" else (both, both)
    expected = gate / (1 + np.exp(-gate)) * up if name == "gated" else both
    got = run(compiled[name], Buffer.from_numpy(x), *stored(weight)).numpy()
    assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()


def test_layers_are_chosen_by_the_storage() -> None:
    with stored_as("int8_rows"):
        plain = build(lambda: linear(100, 30), DType.bfloat16, HOST)  # any width will do
        gated = build(lambda: gated_linear(100, 30), DType.bfloat16, HOST)
        biased = build(lambda: linear(100, 30, bias=True), DType.bfloat16, HOST)
    assert isinstance(plain, WidenedLinear)
    assert isinstance(gated, WidenedGatedLinear)
    shapes = {name: ([int(side) for side in each.shape], each.dtype) for name, each in gated.parameters}
    assert shapes == {"weight": ([100, 60], DType.int8), "scales": ([60], DType.float32)}
    assert not isinstance(biased, WidenedLinear)
