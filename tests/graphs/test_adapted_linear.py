"""Products with low-rank parts of each item's own, against float64; without any they are those of the plain ops.

Rows are counted around the 12 of a tile, outputs around the 32 of a panel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.graph import DeviceRef, TensorType
from torch.nn.functional import silu

from max_zimage.checkpoint.layout import packed
from max_zimage.checkpoint.names import Packing
from max_zimage.device.dtypes import DTYPES, ModelDtype, bfloat16_bits
from max_zimage.graphs import ops
from max_zimage.graphs.adapted_ops import adapted_linear
from tests.references.op_modules import TORCH, Makers, Op, Ops, Typed, Wanted, buffer, check, numbers, run

OUTPUTS = {"plain": 43, "gated": 21}
PACKINGS: Mapping[str, Packing] = {"plain": "panels", "gated": "gated"}
HOST = DeviceRef.CPU()
RANK = 64


def makers_of(name: ModelDtype) -> Makers:
    dtype = DType[name]
    given = TensorType(dtype, ["items", "length", "inputs"], HOST)
    weight = TensorType(dtype, ["panels", "units", "numbers"], HOST)
    down = TensorType(dtype, ["parts", "rank_panels", "units", "numbers"], HOST)
    up = TensorType(dtype, ["parts", "panels", "rank_units", "numbers"], HOST)
    types = [given, weight, down, up, TensorType(DType.int32, ["chosen"], HOST)]
    makers: dict[str, Callable[[], Typed]] = {}
    for op, usual in (("plain", ops.linear), ("gated", ops.gated_linear)):
        more: dict[str, Any] = {"outputs": OUTPUTS[op]}
        makers[f"{op} without"] = partial(Op, partial(usual, **more), [given, weight])
        makers[op] = partial(Op, partial(adapted_linear, **more, gated=op == "gated"), types)
    return makers


OPS = Wanted(makers=makers_of)


@pytest.fixture(scope="module", params=DTYPES)
def compiled(request: pytest.FixtureRequest, compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Ops:
    return compiled_ops["test_adapted_linear", request.param]


@pytest.mark.parametrize("op", OUTPUTS)
@pytest.mark.parametrize("which", [[0], [2, -1, 2, 1]], ids=str)
@pytest.mark.parametrize("length", [1, 12, 25])
@pytest.mark.parametrize("inputs", [2, 130])
def test_each_item_has_its_own(compiled: Ops, op: str, which: list[int], length: int, inputs: int) -> None:
    compare(compiled, op, which, length, inputs)


def compare(compiled: Ops, op: str, which: list[int], length: int, inputs: int) -> None:
    rows, packing, dtype = 2 * OUTPUTS[op] if op == "gated" else OUTPUTS[op], PACKINGS[op], compiled.dtype
    x, weight = numbers(dtype, len(which), length, inputs), numbers(dtype, rows, inputs, seed=1)
    downs = [numbers(dtype, RANK, inputs, seed=10 + each, scale=0.3) for each in range(3)]
    ups = [numbers(dtype, rows, RANK, seed=20 + each, scale=0.3) for each in range(3)]
    factors = panels(torch.stack(downs), "panels"), panels(torch.stack(ups), packing)
    ours = run(compiled.models[op], buffer(x), panels(weight, packing), *factors, named(which))
    plain, exact = (
        expected(op, x.to(to), weight.to(to), [each.to(to) for each in downs], [each.to(to) for each in ups], which)
        for to in (TORCH[dtype], torch.float64)
    )
    check(ours, plain, exact)
    alone = run(compiled.models[f"{op} without"], buffer(x), panels(weight, packing))
    for index, chosen in enumerate(which):
        assert torch.equal(ours[index], alone[index]) == (chosen < 0)


def expected(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    downs: list[torch.Tensor],
    ups: list[torch.Tensor],
    which: list[int],
) -> torch.Tensor:
    """With torch, in the dtype of its arguments."""
    products = [rows @ weight.T for rows in x]
    for index, chosen in enumerate(which):
        if chosen >= 0:
            products[index] = products[index] + (x[index] @ downs[chosen].T) @ ups[chosen].T
    both = torch.stack(products)
    if op == "plain":
        return both
    gate, up = both.chunk(2, dim=-1)
    return silu(gate) * up


@pytest.mark.parametrize(
    ("which", "ranks", "says"),
    [
        ([0, 3], (RANK, RANK), "item 1 names parts beyond the 3"),
        ([0], (RANK, RANK), "not as many choices as items"),
        ([0, 1], (RANK, RANK + 32), "not down's rank of 64"),
    ],
)
def test_what_does_not_fit_is_said(compiled: Ops, which: list[int], ranks: tuple[int, int], says: str) -> None:
    def weights(*shape: int) -> Buffer:
        return panels(numbers(compiled.dtype, *shape), "panels")

    with pytest.raises(Exception, match=says):
        run(
            compiled.models["plain"],
            buffer(numbers(compiled.dtype, 2, 13, 64)),
            weights(43, 64),
            weights(3, ranks[0], 64),
            weights(3, 43, ranks[1]),
            named(which),
        )


def panels(weight: torch.Tensor, packing: Packing) -> Buffer:
    """One weight, or several."""
    values = weight.float().numpy()
    return packed(bfloat16_bits(values) if weight.dtype == torch.bfloat16 else values, packing)


def named(which: list[int]) -> Buffer:
    return Buffer.from_numpy(np.array(which, np.int32))
