"""Matrix products with weights: plain, packed for the kernels of a CPU, or quantized.

`linear` and `gated_linear` choose by the dtype and device that parameters are declared in, and by their widths. The
plain layers define what the packed ones compute; these round once, after all that is fused. Quantized weights are whole
numbers times a scale. On a CPU `x` is rounded the same way, and what is summed of both is exact within a group of
inputs; on an accelerator weights are widened to its dtype in front of each product, and `x` stays as it is.

Reference: diffusers models/transformers/transformer_z_image.py, FeedForward (SwiGLU).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Embedding, Linear, Module
from max.experimental.tensor import Tensor, defaults

from max_zimage.graphs import code_ops, gpu_ops, ops, text_ops
from max_zimage.graphs.kernel_library import own_kernels, runs_on_nvidia, uses_cpu_kernels

Storage = Literal["int8", "q4", "int8_rows"]
"""How quantized weights are kept: codes of eight bits, or of four, for a CPU; of eight bits for an accelerator."""


class Codes(NamedTuple):
    """How the weights of one matrix are quantized.

    Attributes:
        bits: Of a code.
        group: Neighbouring inputs that share a scale.
        is_packed: Whether codes are packed for the kernels of a CPU; if not, the group is all inputs of an output.
    """

    bits: int
    group: int
    is_packed: bool = True


_GROUPS: Mapping[Storage, tuple[int, tuple[int, ...]]] = {"int8": (8, (128, 64, 32)), "q4": (4, (32,))}
"""Bits, and groups from the best to the last that will do: the fewer inputs share a scale, the slower."""
_stored: ContextVar[Storage | None] = ContextVar("_stored", default=None)


@contextmanager
def stored_as(storage: Storage | None) -> Iterator[None]:
    """Have layers that are made inside keep their matrices quantized, where they have no bias.

    Those with a bias lie at the ends of the networks; they are few, small, and feel rounding most.
    """
    token = _stored.set(storage)
    try:
        yield
    finally:
        _stored.reset(token)


def codes_of(storage: Storage, inputs: int) -> Codes | None:
    """How a matrix of so many inputs is quantized; None if they are no whole groups: then it is not."""
    if storage == "int8_rows":
        return Codes(8, inputs, is_packed=False)
    bits, groups = _GROUPS[storage]
    return next((Codes(bits, group) for group in groups if inputs % group == 0), None)


def linear(
    inputs: int, outputs: int, *, bias: bool = False
) -> Linear | PackedLinear | PackedBiasedLinear | QuantizedLinear | WidenedLinear:
    """A layer [..., inputs] -> [..., outputs]."""
    if not bias and (codes := _codes(inputs)) is not None:
        return QuantizedLinear(inputs, outputs, codes) if codes.is_packed else WidenedLinear(inputs, outputs)
    if not _packed(inputs):
        return Linear(inputs, outputs, bias=bias)
    return PackedBiasedLinear(inputs, outputs) if bias else PackedLinear(inputs, outputs)


def gated_linear(inputs: int, outputs: int) -> GatedLinear | PackedGatedLinear | QuantizedLinear | WidenedGatedLinear:
    """A layer [items, length, inputs] -> [items, length, outputs]: silu(x gateᵀ) · (x upᵀ)."""
    if (codes := _codes(inputs)) is not None:
        return (
            QuantizedLinear(inputs, outputs, codes, gated=True)
            if codes.is_packed
            else WidenedGatedLinear(inputs, outputs)
        )
    return PackedGatedLinear(inputs, outputs) if _packed(inputs) else GatedLinear(inputs, outputs)


def gelu_linear(inputs: int, outputs: int) -> GeluLinear | PackedGeluLinear:
    """A layer [items, length, inputs] -> [items, length, outputs]: gelu(x gateᵀ) · (x upᵀ); never quantized."""
    return PackedGeluLinear(inputs, outputs) if _packed(inputs) else GeluLinear(inputs, outputs)


class GatedLinear(Module[[Tensor], Tensor]):
    """silu(x gateᵀ) · (x upᵀ), with gate and up fused into one matrix, one above the other."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.outputs = outputs
        self.weight = Tensor.zeros([2 * outputs, inputs])

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        return _swiglu(x @ self.weight.T, self.outputs)


class WidenedLinear(Module[[Tensor], Tensor]):
    """x weight, where the weight is codes with a scale for each output.

    It is [inputs, outputs]: MAX would turn what is made in front of a product in a pass of its own.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = Tensor.zeros([inputs, outputs], dtype=DType.int8)
        self.scales = Tensor.zeros([outputs], dtype=DType.float32)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return x @ widened(self.weight, self.scales, x)


class WidenedGatedLinear(WidenedLinear):
    """`GatedLinear`, where the weight is codes: all gates before their ups."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, 2 * outputs)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        return _swiglu(super().forward(x), self.outputs)


class PackedLinear(Module[[Tensor], Tensor]):
    """x weightᵀ on a CPU. The weight is packed as `graphs.ops.linear` wants it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.outputs = outputs
        self.weight = _panels(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] or [rows, inputs] -> the same with `outputs`."""
        rows = x if x.rank == 3 else F.unsqueeze(x, 0)
        product = ops.linear(rows, self.weight, self.outputs)
        return product if x.rank == 3 else F.squeeze(product, 0)


class PackedBiasedLinear(PackedLinear):
    """x weightᵀ + bias on a CPU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.bias = Tensor.zeros([outputs])

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] or [rows, inputs] -> the same with `outputs`."""
        return super().forward(x) + self.bias


class PackedGatedLinear(Module[[Tensor], Tensor]):
    """`GatedLinear` on a CPU. The weight is packed as `graphs.ops.gated_linear` wants it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.outputs = outputs
        self.weight = _panels(inputs, ops.gated_rows(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        return ops.gated_linear(x, self.weight, self.outputs)


class GeluLinear(Module[[Tensor], Tensor]):
    """gelu(x gateᵀ) · (x upᵀ) by the approximation with tanh, with gate and up one above the other."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = Tensor.zeros([2 * outputs, inputs])

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        return gelu_gated(x @ self.weight.T)


class PackedGeluLinear(PackedGatedLinear):
    """`GeluLinear` on a CPU. The weight is packed as `graphs.text_ops.gelu_linear` wants it."""

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        return text_ops.gelu_linear(x, self.weight, self.outputs)


def gelu_gated(both: Tensor) -> Tensor:
    """gelu(gate) · up of the two halves of the last axis, by the approximation with tanh."""
    half = int(both.shape[-1]) // 2
    gate, up = F.split(both, [half, half], axis=-1)
    return F.gelu(gate, approximate="tanh") * up


class QuantizedLinear(Module[[Tensor], Tensor]):
    """x weightᵀ or silu(x gateᵀ) · (x upᵀ) on a CPU, of quantized numbers; see `graphs.code_ops.quantized_linear`."""

    def __init__(self, inputs: int, outputs: int, codes: Codes, *, gated: bool = False) -> None:
        self.outputs, self.codes, self.gated = outputs, codes, gated
        rows = ops.gated_rows(outputs) if gated else outputs
        weight, scales = code_ops.quantized_shapes(inputs, rows, bits=codes.bits, group=codes.group)
        self.weight = Tensor.zeros(list(weight), dtype=DType.uint8)
        self.scales = Tensor.zeros(list(scales), dtype=DType.float32)

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        bits, group = self.codes.bits, self.codes.group
        return code_ops.quantized_linear(
            x, self.weight, self.scales, self.outputs, bits=bits, group=group, gated=self.gated
        )


def embedding(rows: int, width: int) -> Embedding | NarrowEmbedding:
    """A layer int [items, length] -> [items, length, width]."""
    return Embedding(rows, dim=width) if _stored.get() is None else NarrowEmbedding(rows, width)


class NarrowEmbedding(Module[[Tensor], Tensor]):
    """Rows of a bfloat16 table, whatever the model's dtype: beside quantized weights a float32 one would be a third."""

    def __init__(self, rows: int, width: int) -> None:
        self.dtype = defaults()[0]
        self.weight = Tensor.zeros([rows, width], dtype=DType.bfloat16)

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 [items, length] -> [items, length, width]."""
        return F.gather(self.weight, ids, axis=0).cast(self.dtype)


def _swiglu(both: Tensor, outputs: int) -> Tensor:
    """silu(gate) · up of the two halves of the last axis."""
    if runs_on_nvidia(both.dtype, both.device) and gpu_ops.has_swiglu(outputs):
        return gpu_ops.swiglu(both, outputs)
    gate, up = F.split(both, [outputs] * 2, axis=-1)
    return F.silu(gate) * up


def widened(codes: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """Codes times the scale of their output, in the dtype of x: what weights are that were decoded at loading.

    Args:
        codes: int8 [inputs, outputs].
        scales: float32 [outputs].
        x: What is multiplied by it, [..., inputs].
    """
    if own_kernels():
        return gpu_ops.widened(codes, scales, x if x.rank == 3 else F.unsqueeze(x, 0))
    return (codes.cast(DType.float32) * scales).cast(x.dtype)


def _codes(inputs: int) -> Codes | None:
    storage = _stored.get()
    return None if storage is None else codes_of(storage, inputs)


def _panels(inputs: int, outputs: int) -> Tensor:
    return Tensor.zeros(list(ops.packed_shape(inputs, outputs, defaults()[0])))


def _packed(inputs: int) -> bool:
    dtype, mesh = defaults()
    return uses_cpu_kernels(dtype, mesh.devices[0]) and ops.packable(inputs, dtype)
