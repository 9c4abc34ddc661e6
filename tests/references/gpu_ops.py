"""The ops for a GPU around a block's products, all in one graph, and what they compute with torch in any dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from max.driver import CPU, Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule
from torch.nn.functional import silu

from max_zimage.graphs import gpu_ops
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.model.attention import ragged_mixed
from max_zimage.graphs.model.meshed_blocks import crossed
from tests.references.kernels import normed, rotated

EPSILON = 1e-5
NAMES = ("query", "key", "added", "next", "scaled", "gated")
"""The graph's outputs."""


@dataclass(frozen=True)
class Widths:
    """Of the tensors.

    Attributes:
        query_heads: Of the queries.
        key_heads: Of the keys.
        head_dim: Width of a head.
        dim: Width of a token.
        ffn: Outputs of SwiGLU.
    """

    query_heads: int
    key_heads: int
    head_dim: int
    dim: int
    ffn: int


PUBLISHED = Widths(query_heads=30, key_heads=30, head_dim=128, dim=3840, ffn=10240)


class AllOps(Module[..., list[Tensor]]):
    """Every op once."""

    def __init__(self, widths: Widths) -> None:
        self.widths = widths

    def forward(
        self,
        heads: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
        rope: Tensor,
        branch: Tensor,
        residual: Tensor,
        table: Tensor,
        both: Tensor,
    ) -> list[Tensor]:
        return [
            *gpu_ops.rotary_heads(
                heads, query_weight, key_weight, rope, query_heads=self.widths.query_heads, epsilon=EPSILON
            ),
            # Rows 1 and 3, which is the last one, and 2.
            *gpu_ops.gated_norms(branch, residual, table, gpu_ops.host_row(1), gate=0, scale=9, epsilon=EPSILON),
            gpu_ops.scaled_norm(residual, table, gpu_ops.host_row(1), scale=1, epsilon=EPSILON),
            gpu_ops.swiglu(both, self.widths.ffn),
        ]

    def input_types(self, device: DeviceRef) -> tuple[TensorType, ...]:
        at, narrow = self.widths, DType.bfloat16
        token = TensorType(narrow, ["items", "length", at.dim], device)
        head = TensorType(narrow, [at.head_dim], device)
        return (
            TensorType(narrow, ["items", "length", at.query_heads + at.key_heads, at.head_dim], device),
            *(head, head),
            TensorType(DType.float32, ["tables", "length", at.head_dim // 2, 2], device),
            *(token, token),
            TensorType(DType.float32, [4, "items", at.dim], device),
            TensorType(narrow, ["items", "length", 2 * at.ffn], device),
        )


class WidenedWeight(Module[..., list[Tensor]]):
    """A matrix of the published widths in eight bits, as a product takes it."""

    shape = (3840, 20480)

    def forward(self, x: Tensor, codes: Tensor, scales: Tensor) -> list[Tensor]:
        return [gpu_ops.widened(codes, scales, x)]

    def input_types(self, device: DeviceRef) -> tuple[TensorType, ...]:
        inputs, outputs = self.shape
        return (
            TensorType(DType.bfloat16, ["items", "length", inputs], device),
            TensorType(DType.int8, [inputs, outputs], device),
            TensorType(DType.float32, [outputs], device),
        )


def compile_all(widths: Widths, device: Device) -> Model:
    """The graph of every op on a device."""
    return compiled(lambda: AllOps(widths), device)


def compiled(make: Callable[[], AllOps | WidenedWeight], device: Device) -> Model:
    """A graph on a device."""
    place, together = DeviceRef.from_device(device), GraphModule()
    module = build(make, DType.bfloat16, place)
    graph = trace(module, module.input_types(place), "gpu_ops", together)
    session = InferenceSession(devices=[device])
    return session.init_all(compile_with_kernels(session, together, [graph]))["gpu_ops"]


def inputs(widths: Widths, items: int, length: int, *, tables: int, scale: float = 1.0) -> list[torch.Tensor]:
    """Normally distributed, and the same each time; weights around 1."""
    generator = torch.Generator().manual_seed(length)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    angles = 3 * numbers(tables, length, widths.head_dim // 2)
    narrow = [
        scale * numbers(items, length, widths.query_heads + widths.key_heads, widths.head_dim),
        *(1 + 0.2 * numbers(widths.head_dim) for _ in range(2)),
        *(scale * numbers(items, length, widths.dim) for _ in range(2)),
        2 * scale * numbers(items, length, 2 * widths.ffn),
    ]
    heads, query_weight, key_weight, branch, residual, both = (each.to(torch.bfloat16) for each in narrow)
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return [heads, query_weight, key_weight, rope, branch, residual, 1 + 0.3 * numbers(4, items, widths.dim), both]


def expected(widths: Widths, given: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The outputs in a dtype: float64, or bfloat16 as plain operations have it, rounded after every one of them."""
    heads, query_weight, key_weight, rope, branch, residual, table, both = given
    query, key = heads.to(dtype).split([widths.query_heads, widths.key_heads], dim=2)
    query, key = (
        rotated(normed(part, weight.to(dtype), EPSILON), rope)
        for part, weight in ((query, query_weight), (key, key_weight))
    )
    one = torch.ones(widths.dim, dtype=dtype)
    gate, scaled, scale = (
        table[row, :, None].to(torch.float64 if dtype == torch.float64 else torch.float32) for row in (1, 2, 3)
    )
    added = residual.to(dtype) + (normed(branch.to(dtype), one, EPSILON) * gate).to(dtype)
    following = (normed(added, one, EPSILON) * scale).to(dtype)
    first = (normed(residual.to(dtype), one, EPSILON) * scaled).to(dtype)
    opened, up = both.to(dtype).chunk(2, dim=-1)
    return [query, key, added, following, first, silu(opened) * up]


def run(model: Model, given: Sequence[torch.Tensor], device: Device) -> list[torch.Tensor]:
    """The outputs in float64."""
    results = model.execute(*(Buffer.from_dlpack(each.contiguous()).to(device) for each in given))
    return [downloaded(each) for each in results]


def downloaded(result: Buffer) -> torch.Tensor:
    """A graph's output in float64."""
    return torch.from_dlpack(result.to(CPU())).double()


class RaggedMix(Module[..., list[Tensor]]):
    """Attention of a batch whose rows are padded to one length, as `graphs.model.attention` calls it."""

    def __init__(self, heads: int, head_dim: int) -> None:
        self.heads, self.head_dim = heads, head_dim

    def forward(self, query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> list[Tensor]:
        return [ragged_mixed(query, key, value, offsets)]

    def input_types(self, device: DeviceRef) -> tuple[TensorType, ...]:
        token = TensorType(DType.bfloat16, ["items", "length", self.heads, self.head_dim], device)
        return (token, token, token, TensorType(DType.uint32, ["offsets"], device))


class PartMix(Module[..., list[Tensor]]):
    """Attention of some queries over all keys, as a device of several has it: without a mask, and with one."""

    def __init__(self, heads: int, head_dim: int) -> None:
        self.heads, self.head_dim = heads, head_dim

    def forward(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> list[Tensor]:
        """Both, [items, part, heads, head_dim] each."""
        return [crossed(query, key, value, given, None) for given in (None, hidden)]

    def input_types(self, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        shapes = [("items", length, self.heads, self.head_dim) for length in ("part", "tokens", "tokens")]
        return tuple(TensorType(DType.bfloat16, shape, device) for shape in (*shapes, ("items", 1, "tokens")))


def compile_part(heads: int, head_dim: int, device: Device) -> Model:
    """`PartMix` on an accelerator."""
    place, together = DeviceRef.from_device(device), GraphModule()
    module = build(lambda: PartMix(heads, head_dim), DType.bfloat16, place)
    graph = trace(module, module.input_types(place), "part_mix", together)
    session = InferenceSession(devices=[device])
    return session.init_all(compile_with_kernels(session, together, [graph]))["part_mix"]


def compile_mix(heads: int, head_dim: int, device: Device) -> Model:
    """Ragged attention alone on an accelerator."""
    place, together = DeviceRef.from_device(device), GraphModule()
    module = build(lambda: RaggedMix(heads, head_dim), DType.bfloat16, place)
    graph = trace(module, module.input_types(place), "ragged_mix", together)
    session = InferenceSession(devices=[device])
    return session.init_all(compile_with_kernels(session, together, [graph]))["ragged_mix"]


def poison(device: Device, *shapes: Sequence[int]) -> None:
    """Fill memory of these sizes with NaN and give it back: what is written next there must not leave any behind."""
    nothing = [torch.full(tuple(shape), torch.nan, dtype=torch.bfloat16) for shape in shapes]
    held = [Buffer.from_dlpack(each).to(device) for each in nothing]
    device.synchronize()
    del held
