"""Products and attention of `kernels` against float64, inside a compiled module and eagerly, in both dtypes.

Rows are counted around the 12 of a tile, queries around the 32 of a panel, keys around the 96 of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.experimental.compilation import as_subgraph
from max.experimental.nn.norm import RMSNorm
from max.experimental.nn.sequential import ModuleList
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.checkpoint.layout import packed
from max_zimage.checkpoint.names import Packing
from max_zimage.device.dtypes import DTYPES, ModelDtype, bfloat16_bits
from max_zimage.graphs import ops
from max_zimage.graphs.linear import PackedLinear
from max_zimage.graphs.model.attention import rotary_attention
from tests.references import kernels as references
from tests.references.op_modules import TORCH, Op, Ops, Typed, Wanted, buffer, check, needs_kernels, numbers, run

HOST = DeviceRef.CPU()
EPSILON = 1e-5
SHAPES = {"bidirectional": (3, 3, 128, False), "causal, shared heads": (4, 2, 64, True)}
"""Name -> heads, key_value_heads, head_dim, causal."""


class Wired(Typed):
    """Attention as the graphs take it, where every position exists."""

    def __init__(self, dtype: DType) -> None:
        self.types = [
            TensorType(dtype, ["items", "length", 9, 128], HOST),
            TensorType(DType.float32, ["tables", "length", 64, 2], HOST),
        ]
        self.q_norm, self.k_norm = RMSNorm(128, eps=EPSILON), RMSNorm(128, eps=EPSILON)

    def forward(self, qkv: Tensor, rope: Tensor) -> list[Tensor]:
        return [rotary_attention(qkv, self.q_norm, self.k_norm, rope, heads=3)]


class Repeated(Typed):
    """Two layers that share one subgraph."""

    def __init__(self, dtype: DType) -> None:
        self.types = [TensorType(dtype, ["items", "length", 64], HOST)]
        self.layers = ModuleList([PackedLinear(64, 64) for _ in range(2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        for layer in self.layers:  # subgraphs of one module of MAX have names of their own
            x = as_subgraph(layer, name=f"layer_{x.dtype.name}")(x)
        return [x]


def product_op(op: Callable[..., Tensor], outputs: int, dtype: DType) -> Op:
    types = [
        TensorType(dtype, ["items", "length", "inputs"], HOST),
        TensorType(dtype, ["panels", "units", "numbers"], HOST),
    ]
    return Op(lambda x, weight: op(x, weight, outputs), types)


def rotary_op(heads: int, shared: int, head_dim: int, causal: bool, dtype: DType) -> Op:
    def call(*inputs: Tensor) -> Tensor:
        return ops.rotary_attention(*inputs, heads=heads, causal=causal, epsilon=EPSILON)

    weight = TensorType(dtype, [head_dim], HOST)
    types = [
        TensorType(dtype, ["items", "length", heads + 2 * shared, head_dim], HOST),
        *(weight, weight),
        TensorType(DType.float32, ["tables", "length", head_dim // 2, 2], HOST),
        TensorType(DType.uint32, ["items"], HOST),
    ]
    return Op(call, types)


def attention_op(dtype: DType) -> Op:
    types = [TensorType(dtype, ["items", "length", 6, 96], HOST), TensorType(DType.uint32, ["items"], HOST)]
    return Op(lambda qkv, valid_length: ops.attention(qkv, valid_length, heads=2), types)


OUTPUTS = {"linear": (32, 96, 320, 43), "gated_linear": (16, 48, 160, 21)}


def makers_of(name: ModelDtype) -> dict[str, Callable[[], Typed]]:
    dtype = DType[name]
    makers: dict[str, Callable[[], Typed]] = {
        f"{op} {outputs}": partial(product_op, getattr(ops, op), outputs, dtype)
        for op, sizes in OUTPUTS.items()
        for outputs in sizes
    }
    makers |= {shape.split(",")[0]: partial(rotary_op, *sizes, dtype) for shape, sizes in SHAPES.items()}
    makers["attention"] = lambda: attention_op(dtype)
    if needs_kernels(name):
        makers |= {"repeated": lambda: Repeated(dtype), "wired": lambda: Wired(dtype)}
    return makers


def weights_of(name: ModelDtype) -> dict[str, Buffer]:
    if not needs_kernels(name):
        return {}
    weights = {f"layers.{i}.weight": panels(numbers(name, 64, 64, seed=i), "panels") for i in range(2)}
    return weights | {f"{each}_norm.weight": buffer(norm(name, each)) for each in "qk"}


OPS = Wanted(makers=makers_of, weights=weights_of)


@pytest.fixture(scope="module", params=DTYPES)
def compiled(request: pytest.FixtureRequest, compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Ops:
    """Every op in one dtype."""
    return compiled_ops["test_kernels", request.param]


def norm(dtype: ModelDtype, name: str) -> torch.Tensor:
    return 1 + numbers(dtype, 128, scale=0.2, seed=ord(name))


def panels(weight: torch.Tensor, packing: Packing) -> Buffer:
    values = weight.float().numpy()
    return packed(bfloat16_bits(values) if weight.dtype == torch.bfloat16 else values, packing)


PRODUCTS: dict[str, tuple[Packing, Callable[..., torch.Tensor]]] = {
    "linear": ("panels", references.linear),
    "gated_linear": ("gated", references.gated_linear),
}


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("items", [1, 2])
@pytest.mark.parametrize("length", [1, 11, 12, 13, 25, 96])
@pytest.mark.parametrize("inputs", [2, 64, 130])
def test_products(compiled: Ops, op: str, items: int, length: int, inputs: int) -> None:
    packing, reference = PRODUCTS[op]
    for outputs in OUTPUTS[op]:
        rows = outputs * (2 if op == "gated_linear" else 1)
        x, weight = numbers(compiled.dtype, items, length, inputs), numbers(compiled.dtype, rows, inputs, seed=1)
        ours = run(compiled.models[f"{op} {outputs}"], buffer(x), panels(weight, packing))
        check(ours, reference(x, weight), reference(x.double(), weight.double()))


def test_an_odd_number_of_inputs(compiled: Ops) -> None:
    """No pairs are read across rows: in bfloat16 such matrices are not packed."""
    assert ops.packable(63, DType[compiled.dtype]) == (compiled.dtype == "float32")
    if compiled.dtype == "float32":
        x, weight = numbers("float32", 2, 13, 63), numbers("float32", 43, 63, seed=1)
        ours = run(compiled.models["linear 43"], buffer(x), panels(weight, "panels"))
        check(ours, x @ weight.T, x.double() @ weight.double().T)


def test_a_subgraph_finds_the_ops(compiled: Ops) -> None:
    if "repeated" not in compiled.models:
        pytest.skip("elsewhere no graph that is traced uses the ops")
    x = numbers(compiled.dtype, 2, 13, 64, seed=2)
    plain, exact = x, x.double()
    for weight in (numbers(compiled.dtype, 64, 64, seed=i) for i in range(2)):
        plain, exact = plain @ weight.T, exact @ weight.double().T
    check(run(compiled.models["repeated"], buffer(x)), plain, exact)


@pytest.mark.parametrize("op", PRODUCTS)
def test_no_rows_are_no_rows(compiled: Ops, op: str) -> None:
    outputs, packing = OUTPUTS[op][0], PRODUCTS[op][0]
    x = Buffer(DType[compiled.dtype], (1, 0, 64), CPU())
    (out,) = compiled.models[f"{op} {outputs}"].execute(x, panels(numbers(compiled.dtype, 32, 64), packing))
    assert list(out.shape) == [1, 0, outputs]


@pytest.mark.parametrize("op", PRODUCTS)
def test_extremes(compiled: Ops, op: str) -> None:
    """Huge and tiny numbers come out as they do in float32, rounded, and what is not finite stays so."""
    packing, reference = PRODUCTS[op]
    model, dtype = compiled.models[f"{op} {OUTPUTS[op][0]}"], TORCH[compiled.dtype]
    x = torch.diag(torch.tensor([1e30, 1e-10, 1e4, -1e4, -50.0, 0.0])).to(dtype).unsqueeze(0)
    weight = torch.ones(32, 6).to(dtype)
    ours = run(model, buffer(x), panels(weight, packing))
    expected = reference(x.float(), weight.float()).to(dtype).double()
    torch.testing.assert_close(ours, expected, rtol=2**-7, atol=1e-30)  # exp() stops at e^88
    alone = torch.tensor([[[float("inf"), 1.0], [float("nan"), 1.0], [float("-inf"), 1.0]]]).to(dtype)
    ours = run(model, buffer(alone), panels(torch.ones(32, 2).to(dtype), packing))
    expected = reference(alone.double(), torch.ones(32, 2).double())
    assert not expected.isfinite().any()
    assert not ours.isfinite().any()
    if op == "linear":  # silu(-inf) is NaN or -inf, depending on where exp() ends
        torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("length", "valid"),
    [
        (1, [1]),
        (31, [31, 30]),
        (32, [32, 1]),
        (33, [33, 32]),
        (95, [95]),
        (96, [96, 95]),
        (97, [97, 96]),
        (200, [97, 200]),
    ],
)
def test_attention(compiled: Ops, name: str, length: int, valid: list[int]) -> None:
    heads, shared, head_dim, causal = SHAPES[name]
    qkv = numbers(compiled.dtype, len(valid), length, heads + 2 * shared, head_dim)
    weights = [1 + numbers(compiled.dtype, head_dim, scale=0.2, seed=seed) for seed in (1, 2)]
    angles = numbers(compiled.dtype, len(valid) if length % 2 else 1, length, head_dim // 2, scale=3.0, seed=3).float()
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1)
    lengths = Buffer.from_numpy(np.array(valid, np.uint32))
    ours = run(compiled.models[name.split(",")[0]], *map(buffer, (qkv, *weights, rope)), lengths)

    def reference(dtype: torch.dtype) -> torch.Tensor:
        mixed, query, key = (tensor.to(dtype) for tensor in (qkv, *weights))
        return references.rotary_attention(mixed, query, key, rope, valid, heads, causal, EPSILON)

    exact, plain = reference(torch.float64), reference(TORCH[compiled.dtype])
    for item, count in enumerate(valid):  # rows beyond are unspecified
        check(ours[item, :count], plain[item, :count], exact[item, :count])
    assert ours.isfinite().all()


def test_attention_with_scores_far_apart(compiled: Ops) -> None:
    """Norms of 40 let one key take all weight, in whichever block of keys it is."""
    heads, shared, head_dim, causal = SHAPES["bidirectional"]
    qkv = numbers(compiled.dtype, 1, 250, heads + 2 * shared, head_dim)
    weight = torch.full((head_dim,), 40.0).to(TORCH[compiled.dtype])
    rope = torch.stack([torch.ones(1, 250, head_dim // 2), torch.zeros(1, 250, head_dim // 2)], dim=-1)
    lengths = Buffer.from_numpy(np.array([250], np.uint32))
    ours = run(compiled.models["bidirectional"], *map(buffer, (qkv, weight, weight, rope)), lengths)
    norms = weight.double()
    exact = references.rotary_attention(qkv.double(), norms, norms, rope, [250], heads, causal, EPSILON)
    right = ((ours - exact).norm(dim=-1) < 0.05 * exact.norm(dim=-1)).double().mean()
    assert right > 0.95  # rounding of queries and keys decides where two keys are nearly equal


def test_the_norms_epsilon_counts(compiled: Ops) -> None:
    """Queries and keys as small as its root: half of their size is the epsilon's."""
    heads, shared, head_dim, causal = SHAPES["bidirectional"]
    qkv = numbers(compiled.dtype, 1, 60, heads + 2 * shared, head_dim, scale=EPSILON**0.5)
    weight = torch.full((head_dim,), 2.0).to(TORCH[compiled.dtype])
    rope = torch.stack([torch.ones(1, 60, head_dim // 2), torch.zeros(1, 60, head_dim // 2)], dim=-1)
    lengths = Buffer.from_numpy(np.array([60], np.uint32))
    ours = run(compiled.models["bidirectional"], *map(buffer, (qkv, weight, weight, rope)), lengths)
    arguments = qkv.double(), weight.double(), weight.double(), rope, [60], heads, causal
    exact, other = (references.rotary_attention(*arguments, eps) for eps in (EPSILON, 0.0))
    assert (ours - exact).norm() < 0.02 * exact.norm()
    assert (other - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize(("length", "valid"), [(1, [1]), (33, [33, 32]), (97, [97, 96]), (200, [97, 200])])
def test_attention_without_norms(compiled: Ops, length: int, valid: list[int]) -> None:
    qkv = numbers(compiled.dtype, len(valid), length, 6, 96)
    ours = run(compiled.models["attention"], buffer(qkv), Buffer.from_numpy(np.array(valid, np.uint32)))
    plain, exact = (references.attention(qkv.to(dtype), valid, 2) for dtype in (TORCH[compiled.dtype], torch.float64))
    for item, count in enumerate(valid):
        check(ours[item, :count], plain[item, :count], exact[item, :count])


def test_attention_as_graphs_take_it(compiled: Ops) -> None:
    if "wired" not in compiled.models:
        pytest.skip("elsewhere no graph that is traced uses the ops")
    qkv, angles = numbers(compiled.dtype, 3, 45, 9, 128), numbers("float32", 1, 45, 64, scale=3.0, seed=3)
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1)
    ours = run(compiled.models["wired"], buffer(qkv), buffer(rope))

    def reference(dtype: torch.dtype) -> torch.Tensor:
        query, key = (norm(compiled.dtype, name).to(dtype) for name in "qk")
        return references.rotary_attention(qkv.to(dtype), query, key, rope, None, 3, False, EPSILON)

    check(ours, reference(TORCH[compiled.dtype]), reference(torch.float64))


def test_shapes_that_do_not_belong_together_are_refused(compiled: Ops) -> None:
    weights = panels(numbers(compiled.dtype, 32, 64), "panels")
    with pytest.raises(Exception, match="x has 62 inputs and the packed weight 64"):
        compiled.models["linear 32"].execute(buffer(numbers(compiled.dtype, 1, 13, 62)), weights)
    heads, shared, head_dim, _ = SHAPES["bidirectional"]
    weight, lengths = numbers(compiled.dtype, head_dim), Buffer.from_numpy(np.array([5] * 3, np.uint32))
    qkv, rope = numbers(compiled.dtype, 3, 5, heads + 2 * shared, head_dim), torch.ones(2, 5, head_dim // 2, 2)
    with pytest.raises(Exception, match="2 RoPE tables for 3 items"):
        compiled.models["bidirectional"].execute(*map(buffer, (qkv, weight, weight, rope)), lengths)


@pytest.mark.filterwarnings("ignore:The eager interpreter failed on this graph")  # MAX compiles it instead
def test_an_op_runs_eagerly() -> None:
    x, weight = numbers("float32", 1, 13, 64), numbers("float32", 32, 64, seed=1)
    product = ops.linear(Tensor.from_dlpack(x), Tensor.from_dlpack(panels(weight, "panels")), 32)
    check(torch.from_dlpack(product).double(), x @ weight.T, x.double() @ weight.double().T)
