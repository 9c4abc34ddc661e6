"""Products of bfloat16 whose weights are widened in registers, against float64, on every processor.

Rows are counted around the 12 of a tile, outputs around the 32 of a panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.checkpoint.layout import packed
from max_zimage.checkpoint.names import Packing
from max_zimage.device.dtypes import ModelDtype, bfloat16_bits
from max_zimage.graphs import ops, text_ops
from tests.graphs import test_adapted_linear as adapted
from tests.graphs.test_text_ops import EXPERTS, buffers, exact, expert_op, given
from tests.references import kernels as references
from tests.references.op_modules import Makers, Op, Ops, Wanted, buffer, check, numbers, run

OUTPUTS = {"linear": 43, "gated_linear": 21, "gelu_linear": 21}


def product(op: str) -> Op:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        return getattr(text_ops if op == "gelu_linear" else ops, op)(x, weight, OUTPUTS[op])

    names = (("items", "length", "inputs"), ("panels", "units", "numbers"))
    return Op(call, [TensorType(DType.bfloat16, list(each), DeviceRef.CPU()) for each in names])


def makers_of(name: ModelDtype) -> Makers:
    products = {op: partial(product, op) for op in OUTPUTS} | {"experts": partial(expert_op, "odd", DType[name])}
    return products | {**adapted.makers_of(name)}


OPS = Wanted(makers=makers_of, dtypes=["bfloat16"], loop="widened")


@pytest.fixture(scope="module")
def compiled(compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Ops:
    return compiled_ops["test_widened", "bfloat16"]


@pytest.mark.parametrize(("op", "packing"), [("linear", "panels"), ("gated_linear", "gated"), ("gelu_linear", "gated")])
@pytest.mark.parametrize("length", [1, 12, 13, 96])
@pytest.mark.parametrize("inputs", [2, 64, 130])
def test_products(compiled: Ops, op: str, packing: Packing, length: int, inputs: int) -> None:
    rows, reference = OUTPUTS[op] * (2 if packing == "gated" else 1), getattr(references, op)
    x, weight = numbers("bfloat16", 2, length, inputs), numbers("bfloat16", rows, inputs, seed=1)
    panels: Buffer = packed(bfloat16_bits(weight.float().numpy()), packing)
    ours = run(compiled.models[op], buffer(x), panels)
    check(ours, reference(x, weight), reference(x.double(), weight.double()))
    assert ours.shape == torch.Size([2, length, OUTPUTS[op]])


@pytest.mark.parametrize("length", [1, 31])
def test_experts(compiled: Ops, length: int) -> None:
    inputs, each = given("odd", "bfloat16", 2, length), EXPERTS["odd"][1]
    ours = run(compiled.models["experts"], *buffers(inputs))
    check(ours, references.experts(*inputs, each), exact(inputs, each))


@pytest.mark.parametrize("op", adapted.OUTPUTS)
def test_low_rank_parts(compiled: Ops, op: str) -> None:
    adapted.compare(compiled, op, [2, -1, 2, 1], 25, 130)
