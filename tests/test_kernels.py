"""The ops of `kernels` against float64, inside a compiled module and eagerly.

Rows are counted around the 12 of a tile, queries around the 32 of a panel, keys around the 96 of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.compilation import as_subgraph
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.nn.sequential import ModuleList
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule
from references import kernels as references
from tolerances import BFLOAT16_RATIO

from graphs import ops
from graphs.attention import rotary_attention
from graphs.cpu import instructions
from graphs.layers import build, trace
from graphs.linear import PackedLinear
from max_zimage.weight_names import Packing
from max_zimage.weight_order import pack

HOST = DeviceRef.CPU()
EPSILON = 1e-5
SHAPES = {"bidirectional": (3, 3, 128, False), "causal, shared heads": (4, 2, 64, True)}
"""Name -> heads, key_value_heads, head_dim, causal."""


class Op(Module[..., list[Tensor]]):
    """One call of an op."""

    def __init__(self, call: Callable[..., Tensor], types: list[TensorType]) -> None:
        self.call, self.types = call, types

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [self.call(*inputs)]


class Wired(Module[..., list[Tensor]]):
    """Attention as the graphs take it, where every position exists."""

    def __init__(self) -> None:
        self.types = [
            TensorType(DType.bfloat16, ["items", "length", 9, 128], HOST),
            TensorType(DType.float32, ["tables", "length", 64, 2], HOST),
        ]
        self.q_norm, self.k_norm = RMSNorm(128, eps=EPSILON), RMSNorm(128, eps=EPSILON)

    def forward(self, qkv: Tensor, rope: Tensor) -> list[Tensor]:
        return [rotary_attention(qkv, self.q_norm, self.k_norm, rope, heads=3)]


class Repeated(Module[..., list[Tensor]]):
    """Two layers that share one subgraph."""

    def __init__(self) -> None:
        self.types = [TensorType(DType.bfloat16, ["items", "length", 64], HOST)]
        self.layers = ModuleList([PackedLinear(64, 64) for _ in range(2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        for layer in self.layers:
            x = as_subgraph(layer, name="layer")(x)
        return [x]


def product_types() -> list[TensorType]:
    return [
        TensorType(DType.bfloat16, ["items", "length", "inputs"], HOST),
        TensorType(DType.bfloat16, ["panels", "pairs", 64], HOST),
    ]


def attention_op(heads: int, shared: int, head_dim: int, causal: bool) -> Op:
    def call(*inputs: Tensor) -> Tensor:
        return ops.attention(*inputs, heads=heads, causal=causal, epsilon=EPSILON)

    weight = TensorType(DType.bfloat16, [head_dim], HOST)
    types = [
        TensorType(DType.bfloat16, ["items", "length", heads + 2 * shared, head_dim], HOST),
        *(weight, weight),
        TensorType(DType.float32, ["tables", "length", head_dim // 2, 2], HOST),
        TensorType(DType.uint32, ["items"], HOST),
    ]
    return Op(call, types)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Model]:
    """Every op, compiled as one module."""
    makers = {"linear": lambda: Op(ops.linear, product_types())}
    if "avx512_bf16" in instructions():
        makers |= {"repeated": Repeated, "wired": Wired}
    makers["gated_linear"] = lambda: Op(ops.gated_linear, product_types())
    makers |= {name.split(",")[0]: lambda shape=shape: attention_op(*shape) for name, shape in SHAPES.items()}
    together, graphs = GraphModule(), []
    for name, make in makers.items():
        module = build(make, DType.bfloat16, HOST)
        graphs.append(trace(module, module.types, name, together))
    session = InferenceSession([CPU()])
    weights = {f"layers.{i}.weight": packed(bfloat16(64, 64, seed=i), "panels") for i in range(2)}
    weights |= {f"{name}_norm.weight": buffer(norm(name)) for name in "qk"}
    weights = weights if "repeated" in makers else {}
    return session.init_all(ops.compile_with_kernels(session, together, graphs), weights_registry=weights)


def bfloat16(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def norm(name: str) -> torch.Tensor:
    return 1 + bfloat16(128, scale=0.2, seed=ord(name))


def buffer(tensor: torch.Tensor) -> Buffer:
    return Buffer.from_dlpack(tensor.contiguous())


def packed(weight: torch.Tensor, packing: Packing) -> Buffer:
    panels = pack(weight.view(torch.int16).numpy().view(np.uint16), packing)
    return Buffer.from_numpy(panels.reshape(-1)).view(DType.bfloat16, panels.shape)


def run(model: Model, *inputs: Buffer) -> torch.Tensor:
    return torch.from_dlpack(model.execute(*inputs)[0]).double()


def check(ours: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """At most twice the error of the same operations done plainly in bfloat16."""
    assert ours.shape == exact.shape
    norm = exact.norm()
    assert (ours - exact).norm() <= BFLOAT16_RATIO * (plain.double() - exact).norm() + 1e-6 * norm
    assert norm == 0 or (ours - exact).norm() < 0.02 * norm


PRODUCTS: dict[str, tuple[Packing, Callable[..., torch.Tensor]]] = {
    "linear": ("panels", references.linear),
    "gated_linear": ("gated", references.gated_linear),
}


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("items", [1, 2])
@pytest.mark.parametrize("length", [1, 11, 12, 13, 25, 96])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 32), (64, 96), (130, 320)])
def test_products(compiled: dict[str, Model], op: str, items: int, length: int, inputs: int, outputs: int) -> None:
    packing, reference = PRODUCTS[op]
    x, weight = bfloat16(items, length, inputs), bfloat16(outputs, inputs, seed=1)
    ours = run(compiled[op], buffer(x), packed(weight, packing))
    check(ours, reference(x, weight), reference(x.double(), weight.double()))


@pytest.mark.skipif("avx512_bf16" not in instructions(), reason="elsewhere no graph that is traced uses the ops")
def test_a_subgraph_finds_the_ops(compiled: dict[str, Model]) -> None:
    x, weights = bfloat16(2, 13, 64, seed=2), [bfloat16(64, 64, seed=i) for i in range(2)]
    plain, exact = x, x.double()
    for weight in weights:
        plain, exact = plain @ weight.T, exact @ weight.double().T
    check(run(compiled["repeated"], buffer(x)), plain, exact)


@pytest.mark.parametrize("op", PRODUCTS)
def test_no_rows_are_no_rows(compiled: dict[str, Model], op: str) -> None:
    x = Buffer(DType.bfloat16, (1, 0, 64), CPU())
    (out,) = compiled[op].execute(x, packed(bfloat16(32, 64), PRODUCTS[op][0]))
    assert list(out.shape) == [1, 0, 32 if op == "linear" else 16]


@pytest.mark.parametrize("op", PRODUCTS)
def test_extremes(compiled: dict[str, Model], op: str) -> None:
    """Huge and tiny numbers come out as they do in float32, rounded, and what is not finite stays so."""
    packing, reference = PRODUCTS[op]
    x = torch.diag(torch.tensor([1e30, 1e-10, 1e4, -1e4, -50.0, 0.0])).bfloat16().unsqueeze(0)
    weight = torch.ones(32, 6).bfloat16()
    ours = run(compiled[op], buffer(x), packed(weight, packing))
    expected = reference(x.float(), weight.float()).bfloat16().double()
    torch.testing.assert_close(ours, expected, rtol=2**-7, atol=1e-30)  # exp() stops at e^88
    alone = torch.tensor([[[float("inf"), 1.0], [float("nan"), 1.0], [float("-inf"), 1.0]]]).bfloat16()
    ours = run(compiled[op], buffer(alone), packed(torch.ones(32, 2).bfloat16(), packing))
    expected = reference(alone.double(), torch.ones(32, 2).double())
    assert not expected.isfinite().any() and not ours.isfinite().any()
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
def test_attention(compiled: dict[str, Model], name: str, length: int, valid: list[int]) -> None:
    heads, shared, head_dim, causal = SHAPES[name]
    qkv = bfloat16(len(valid), length, heads + 2 * shared, head_dim)
    weights = [1 + bfloat16(head_dim, scale=0.2, seed=seed) for seed in (1, 2)]
    angles = bfloat16(len(valid) if length % 2 else 1, length, head_dim // 2, scale=3.0, seed=3).float()
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1)
    lengths = Buffer.from_numpy(np.array(valid, np.uint32))
    ours = run(compiled[name.split(",")[0]], *map(buffer, (qkv, *weights, rope)), lengths)

    def reference(dtype: torch.dtype) -> torch.Tensor:
        tensors = [tensor.to(dtype) for tensor in (qkv, *weights)]
        return references.rotary_attention(*tensors, rope, valid, heads, causal, EPSILON)

    exact, plain = reference(torch.float64), reference(torch.bfloat16)
    for item, count in enumerate(valid):  # rows beyond are unspecified
        check(ours[item, :count], plain[item, :count], exact[item, :count])
    assert ours.isfinite().all()


def test_attention_with_scores_far_apart(compiled: dict[str, Model]) -> None:
    """Norms of 40 let one key take all weight, in whichever block of keys it is."""
    heads, shared, head_dim, causal = SHAPES["bidirectional"]
    qkv = bfloat16(1, 250, heads + 2 * shared, head_dim)
    weight = torch.full((head_dim,), 40.0).bfloat16()
    rope = torch.stack([torch.ones(1, 250, head_dim // 2), torch.zeros(1, 250, head_dim // 2)], dim=-1)
    lengths = Buffer.from_numpy(np.array([250], np.uint32))
    ours = run(compiled["bidirectional"], *map(buffer, (qkv, weight, weight, rope)), lengths)
    tensors = [tensor.double() for tensor in (qkv, weight, weight)]
    exact = references.rotary_attention(*tensors, rope, [250], heads, causal, EPSILON)
    right = ((ours - exact).norm(dim=-1) < 0.05 * exact.norm(dim=-1)).double().mean()
    assert right > 0.95  # rounding of queries and keys decides where two keys are nearly equal


def test_the_norms_epsilon_counts(compiled: dict[str, Model]) -> None:
    """Queries and keys as small as its root: half of their size is the epsilon's."""
    heads, shared, head_dim, causal = SHAPES["bidirectional"]
    qkv = bfloat16(1, 60, heads + 2 * shared, head_dim, scale=EPSILON**0.5)
    weight = torch.full((head_dim,), 2.0).bfloat16()
    rope = torch.stack([torch.ones(1, 60, head_dim // 2), torch.zeros(1, 60, head_dim // 2)], dim=-1)
    ours = run(
        compiled["bidirectional"],
        *map(buffer, (qkv, weight, weight, rope)),
        Buffer.from_numpy(np.array([60], np.uint32)),
    )
    arguments = [tensor.double() for tensor in (qkv, weight, weight)], rope, [60], heads, causal
    exact, other = (references.rotary_attention(*arguments[0], *arguments[1:], eps) for eps in (EPSILON, 0.0))
    assert (ours - exact).norm() < 0.02 * exact.norm()
    assert (other - exact).norm() > 0.1 * exact.norm()


@pytest.mark.skipif("avx512_bf16" not in instructions(), reason="elsewhere no graph that is traced uses the ops")
def test_attention_as_graphs_take_it(compiled: dict[str, Model]) -> None:
    qkv, angles = bfloat16(3, 45, 9, 128), bfloat16(1, 45, 64, scale=3.0, seed=3).float()
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1)
    ours = run(compiled["wired"], buffer(qkv), buffer(rope))

    def reference(dtype: torch.dtype) -> torch.Tensor:
        tensors = [tensor.to(dtype) for tensor in (qkv, norm("q"), norm("k"))]
        return references.rotary_attention(*tensors, rope, None, 3, False, EPSILON)

    check(ours, reference(torch.bfloat16), reference(torch.float64))


def test_shapes_that_do_not_belong_together_are_refused(compiled: dict[str, Model]) -> None:
    with pytest.raises(Exception, match="x has 62 inputs and the packed weight 64"):
        compiled["linear"].execute(buffer(bfloat16(1, 13, 62)), packed(bfloat16(32, 64), "panels"))
    heads, shared, head_dim, _ = SHAPES["bidirectional"]
    weight, lengths = bfloat16(head_dim), Buffer.from_numpy(np.array([5] * 3, np.uint32))
    tensors = bfloat16(3, 5, heads + 2 * shared, head_dim), weight, weight, torch.ones(2, 5, head_dim // 2, 2)
    with pytest.raises(Exception, match="2 RoPE tables for 3 items"):
        compiled["bidirectional"].execute(*map(buffer, tensors), lengths)


def test_an_op_runs_eagerly() -> None:
    x, weight = bfloat16(1, 13, 64), bfloat16(32, 64, seed=1)
    product = ops.linear(Tensor.from_dlpack(x), Tensor.from_dlpack(packed(weight, "panels")))
    check(torch.from_dlpack(product).double(), x @ weight.T, x.double() @ weight.double().T)
