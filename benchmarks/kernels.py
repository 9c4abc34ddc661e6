"""The ops of `kernels` at the real model's width: ours, their twins of plain operations, and PyTorch, all in bfloat16.

Weights are packed beforehand, as loading does. PyTorch's row is the same formula in its own operations, attention in it
`scaled_dot_product_attention`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from references import kernels as references

from benchmarks.compiling import CompiledModule, compiled
from benchmarks.machine import as_torch
from benchmarks.measure import Row, interleave, relative_l2
from graphs.attention import rotary_attention
from graphs.linear import gated_linear, linear
from graphs.ops import runs_here, without_kernels
from max_zimage.profiling import work
from max_zimage.weight_names import Packing
from max_zimage.weight_order import pack

EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is multiplied and attended.

    Attributes:
        dim: Width of a token.
        ffn_dim: Hidden width of the feed-forward layer.
        head_dim: Width of a head.
        tokens: Of the products.
        attended: Numbers of tokens of attention.
    """

    dim: int
    ffn_dim: int
    head_dim: int
    tokens: int
    attended: tuple[int, ...]


FULL = Sizes(dim=3840, ffn_dim=10240, head_dim=128, tokens=1056, attended=(1056, 4128))
QUICK = Sizes(dim=64, ffn_dim=96, head_dim=32, tokens=37, attended=(50,))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one size.

    Attributes:
        name: What the table calls it.
        sizes: In words.
        gflop: Multiplications and additions, in 10^9.
        make: The Module, with the op or with its twin.
        types: Of the Module's inputs.
        inputs: Data.
        weights: Name -> matrix or vector, and how it is packed for the op.
        theirs: PyTorch's call.
        exact: What comes out in float64, or None where that would take too long.
    """

    name: str
    sizes: str
    gflop: float
    make: Callable[[], Module[..., Any]]
    types: tuple[TensorType, ...]
    inputs: tuple[torch.Tensor, ...]
    weights: Mapping[str, tuple[torch.Tensor, Packing | None]]
    theirs: Callable[[], torch.Tensor]
    exact: Callable[[], torch.Tensor] | None


class _Attention(Module[..., Tensor]):
    def __init__(self, head_dim: int, heads: int) -> None:
        self.heads = heads
        self.q_norm, self.k_norm = RMSNorm(head_dim, eps=EPSILON), RMSNorm(head_dim, eps=EPSILON)

    def forward(self, qkv: Tensor, rope: Tensor, valid_length: Tensor) -> Tensor:
        return rotary_attention(qkv, self.q_norm, self.k_norm, rope, heads=self.heads, valid_length=valid_length)


def rows(sizes: Sizes, repeats: int, roofs: dict[str, float]) -> list[Row]:
    """Measure every op."""
    if not runs_here(DType.bfloat16, CPU()):
        note = "this processor multiplies no bfloat16: graphs use plain operations"
        return [Row(case="kernels", variant="ours", dtype="bfloat16", sizes="", note=note)]
    cases = [
        _product("q, k and v in one", sizes.tokens, sizes.dim, 3 * sizes.dim, gated=False),
        _product("SwiGLU's pair, gated", sizes.tokens, sizes.dim, 2 * sizes.ffn_dim, gated=True),
        _product("SwiGLU's second product", sizes.tokens, sizes.ffn_dim, sizes.dim, gated=False),
        *(_attention(tokens, sizes.dim // sizes.head_dim, sizes.head_dim) for tokens in sizes.attended),
    ]
    return [row for case in cases for row in _rows(case, repeats, roofs)]


def _rows(case: Case, repeats: int, roofs: dict[str, float]) -> list[Row]:
    ours = _compiled(case, packed=True)
    with without_kernels():
        twin = _compiled(case, packed=False)
    buffers = [Buffer.from_dlpack(tensor) for tensor in case.inputs]
    calls: dict[str, Callable[[], object]] = {
        "torch": case.theirs,
        "MAX, plain operations": functools.partial(twin, *buffers),
        "ours": functools.partial(ours, *buffers),
    }
    timings = interleave(calls, repeats)
    exact = case.exact().numpy() if case.exact else None
    outputs = {"torch": case.theirs()}
    outputs |= {name: as_torch(calls[name]()[0]) for name in ("MAX, plain operations", "ours")}  # type: ignore[index]
    seconds = {"ours": ours.seconds, "MAX, plain operations": twin.seconds}
    return [
        Row(
            case=f"kernels: {case.name}",
            variant=name,
            dtype="bfloat16",
            sizes=case.sizes,
            timing=timing,
            compile_seconds=seconds.get(name),
            gflop=case.gflop,
            roof=roofs.get("bfloat16"),
            relative_l2=None if exact is None else relative_l2(outputs[name].double().numpy(), exact),
            reference=name == "torch",
        )
        for name, timing in timings.items()
    ]


def _compiled(case: Case, *, packed: bool) -> CompiledModule:
    weights = {name: _buffer(tensor, how if packed else None) for name, (tensor, how) in case.weights.items()}
    return compiled(case.make, "bfloat16", case.types, weights)


def _buffer(tensor: torch.Tensor, packing: Packing | None) -> Buffer:
    if packing is None:
        return Buffer.from_dlpack(tensor)
    panels = pack(tensor.view(torch.uint16).numpy(), packing)
    return Buffer.from_numpy(panels.reshape(-1)).view(DType.bfloat16, panels.shape)


def _product(name: str, tokens: int, inputs: int, outputs: int, *, gated: bool) -> Case:
    x, weight = _random(1, tokens, inputs), _random(outputs, inputs)
    reference = references.gated_linear if gated else references.linear
    return Case(
        name=name,
        sizes=f"{tokens}x{inputs}x{outputs}",
        gflop=2 * tokens * inputs * outputs / 1e9,
        make=lambda: gated_linear(inputs, outputs // 2) if gated else linear(inputs, outputs),
        types=(TensorType(DType.bfloat16, ["items", "length", inputs], DeviceRef.CPU()),),
        inputs=(x,),
        weights={"weight": (weight, "gated" if gated else "panels")},
        theirs=lambda: reference(x, weight),
        exact=lambda: reference(x.double(), weight.double()),
    )


def _attention(tokens: int, heads: int, head_dim: int) -> Case:
    qkv, angles = _random(1, tokens, 3 * heads, head_dim), _random(1, tokens, head_dim // 2).float()
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1)
    norms = {f"{name}_norm.weight": 1 + _random(head_dim) / 8 for name in "qk"}
    device = DeviceRef.CPU()

    def theirs(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        tensors = [tensor.to(dtype) for tensor in (qkv, *norms.values())]
        return references.rotary_attention(*tensors, rope, None, heads, causal=False, epsilon=EPSILON)

    return Case(
        name=f"norms, RoPE and attention, {tokens} tokens",
        sizes=f"{tokens} tokens x {heads} heads x {head_dim}",
        gflop=work.attention(1, tokens, heads, head_dim, size=0).flops / 1e9,
        make=lambda: _Attention(head_dim, heads),
        types=(
            TensorType(DType.bfloat16, ["items", "length", 3 * heads, head_dim], device),
            TensorType(DType.float32, ["items", "length", head_dim // 2, 2], device),
            TensorType(DType.uint32, ["items"], device),
        ),
        inputs=(qkv, rope, torch.tensor([tokens], dtype=torch.uint32)),
        weights={name: (tensor, None) for name, tensor in norms.items()},
        theirs=theirs,
        exact=(lambda: theirs(torch.float64)) if tokens < 2048 else None,
    )


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).bfloat16()
