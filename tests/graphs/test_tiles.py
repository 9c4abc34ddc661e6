"""Products 32 x 32 sums at a time, against float64: in the tiles of a processor that has them, in vectors on others.

The layouts and the sharing are the same; `tests/compile/test_amx.py` has the instructions themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
from max.dtype import DType
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule

from max_zimage.checkpoint.layout import packed
from max_zimage.checkpoint.names import Packing
from max_zimage.device.dtypes import ModelDtype, bfloat16_bits
from max_zimage.graphs import ops
from max_zimage.graphs.cpu import InnerLoop, multiplying_by
from max_zimage.graphs.layers import build, trace
from tests.references import kernels as references
from tests.references.op_modules import Makers, Op, Ops, Wanted, buffer, check, numbers, run

OUTPUTS = {"linear": 43, "gated_linear": 21}
INPUTS = (32, 256)


def product(op: str, inputs: int) -> Op:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        return getattr(ops, op)(x, weight, OUTPUTS[op])

    shapes: list[list[str | int]] = [["items", "length", inputs], ["panels", inputs // 2, 64]]
    return Op(call, [TensorType(DType.bfloat16, each, DeviceRef.CPU()) for each in shapes])


def makers_of(_: ModelDtype) -> Makers:
    return {f"{op} {inputs}": partial(product, op, inputs) for op in OUTPUTS for inputs in INPUTS}


OPS = Wanted(makers=makers_of, dtypes=["bfloat16"], loop="tiles")


@pytest.mark.parametrize(("op", "packing"), [("linear", "panels"), ("gated_linear", "gated")])
@pytest.mark.parametrize("length", [1, 16, 33, 300])
@pytest.mark.parametrize("inputs", INPUTS)
def test_products(
    compiled_ops: Mapping[tuple[str, ModelDtype], Ops], op: str, packing: Packing, length: int, inputs: int
) -> None:
    rows, reference = OUTPUTS[op] * (2 if packing == "gated" else 1), getattr(references, op)
    x, weight = numbers("bfloat16", 2, length, inputs), numbers("bfloat16", rows, inputs, seed=1)
    panels = packed(bfloat16_bits(weight.float().numpy()), packing)
    ours = run(compiled_ops["test_tiles", "bfloat16"].models[f"{op} {inputs}"], buffer(x), panels)
    check(ours, reference(x, weight), reference(x.double(), weight.double()))


@pytest.mark.parametrize("op", OUTPUTS)
@pytest.mark.parametrize(
    ("loop", "inputs", "in_tiles"), [("tiles", 256, True), ("tiles", 48, False), ("pairs", 256, False)]
)
def test_which_op_a_layer_is(op: str, loop: InnerLoop, inputs: int, in_tiles: bool) -> None:
    with multiplying_by(loop):
        module = build(partial(product, op, inputs), DType.bfloat16, DeviceRef.CPU())
        text = str(trace(module, module.types, "product", GraphModule()))
    assert (f"max_zimage.tile_{op}" in text) == in_tiles
    assert (f"max_zimage.{op}" in text) != in_tiles
