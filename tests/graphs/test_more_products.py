"""Products in other ways than usual, against float64: bfloat16 widened in registers, items with their own weights.

Rows are counted around the 12 of a tile, outputs around the 32 of a panel.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.checkpoint.layout import packed
from max_zimage.checkpoint.names import Packing
from max_zimage.device.dtypes import DTYPES, ModelDtype, bfloat16_bits
from max_zimage.graphs import ops
from max_zimage.graphs.chosen_ops import chosen_linear
from max_zimage.graphs.cpu import multiplying_by
from tests.references import kernels as references
from tests.references.op_modules import TORCH, Op, buffer, check, compile_ops, numbers, run

OUTPUTS = {"linear": 43, "gated_linear": 21}
HOST = DeviceRef.CPU()


def widened(op: str) -> Op:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        with multiplying_by("widened"):
            return getattr(ops, op)(x, weight, OUTPUTS[op])

    names = (("items", "length", "inputs"), ("panels", "units", "numbers"))
    return Op(call, [TensorType(DType.bfloat16, list(each), HOST) for each in names])


def chosen(dtype: DType) -> Op:
    names = (("items", "length", "inputs"), ("weights", "panels", "units", "numbers"))
    types = [*(TensorType(dtype, list(each), HOST) for each in names), TensorType(DType.int32, ["chosen"], HOST)]
    return Op(lambda x, weight, which: chosen_linear(x, weight, which, 43), types)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    makers = {op: partial(widened, op) for op in OUTPUTS}
    makers |= {f"chosen {name}": partial(chosen, DType[name]) for name in DTYPES}
    return compile_ops(makers, DType.float32, {})


def panels(weight: torch.Tensor, packing: Packing) -> Buffer:
    values = weight.float().numpy()
    return packed(bfloat16_bits(values) if weight.dtype == torch.bfloat16 else values, packing)


@pytest.mark.parametrize(("op", "packing"), [("linear", "panels"), ("gated_linear", "gated")])
@pytest.mark.parametrize("length", [1, 12, 13, 96])
@pytest.mark.parametrize("inputs", [2, 64, 130])
def test_widened(models: dict[str, Model], op: str, packing: Packing, length: int, inputs: int) -> None:
    rows, reference = OUTPUTS[op] * (2 if op == "gated_linear" else 1), getattr(references, op)
    x, weight = numbers("bfloat16", 2, length, inputs), numbers("bfloat16", rows, inputs, seed=1)
    ours = run(models[op], buffer(x), panels(weight, packing))
    check(ours, reference(x, weight), reference(x.double(), weight.double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [[0], [2, 0, 2, 1]], ids=str)
@pytest.mark.parametrize("length", [1, 12, 25])
@pytest.mark.parametrize("inputs", [2, 130])
def test_chosen(models: dict[str, Model], dtype: ModelDtype, which: list[int], length: int, inputs: int) -> None:
    x = numbers(dtype, len(which), length, inputs)
    weights = [numbers(dtype, 43, inputs, seed=seed) for seed in range(1, 4)]
    ours = run(models[f"chosen {dtype}"], buffer(x), stacked(weights), named(which))
    plain, exact = (
        torch.cat([references.linear(x[i : i + 1].to(to), weights[each].to(to)) for i, each in enumerate(which)])
        for to in (TORCH[dtype], torch.float64)
    )
    check(ours, plain, exact)


@pytest.mark.parametrize(
    ("which", "says"),
    [([0, 3], "item 1 names weight 3 of 3"), ([-1, 0], "item 0 names weight -1 of 3"), ([0], "is named for 1")],
)
def test_a_weight_that_is_not_there(models: dict[str, Model], which: list[int], says: str) -> None:
    weights = stacked([numbers("float32", 43, 64, seed=seed) for seed in range(3)])
    with pytest.raises(Exception, match=says):
        run(models["chosen float32"], buffer(numbers("float32", 2, 13, 64)), weights, named(which))


def stacked(weights: list[torch.Tensor]) -> Buffer:
    """[weights, panels, units, numbers]."""
    each = [torch.from_dlpack(panels(weight, "panels")) for weight in weights]
    return Buffer.from_dlpack(torch.stack(each))


def named(which: list[int]) -> Buffer:
    return Buffer.from_numpy(np.array(which, np.int32))
