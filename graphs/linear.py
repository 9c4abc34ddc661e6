"""Matrix products with weights, plain or packed for the kernels of a CPU.

`linear` and `gated_linear` choose by the dtype and device that parameters are declared in. The plain layers define what
the packed ones compute; the packed ones round once, after all that is fused.

Reference: diffusers models/transformers/transformer_z_image.py, FeedForward (SwiGLU).
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Linear, Module
from max.experimental.tensor import Tensor, defaults

from graphs import ops
from graphs.kernel_library import runs_here

ROW_BYTES = 16
"""MAX 26.7 has no bfloat16 product for GPUs of which a row of either factor is no multiple of this: the compiler takes
23 GB and more before it fails."""


def linear(inputs: int, outputs: int, *, bias: bool = False) -> Linear | PackedLinear | PackedBiasedLinear:
    """A layer [..., inputs] -> [..., outputs]."""
    if _needs_whole_rows(inputs):
        return WholeRowsLinear(inputs, outputs, bias=bias)
    if not _packed(inputs):
        return Linear(inputs, outputs, bias=bias)
    return PackedBiasedLinear(inputs, outputs) if bias else PackedLinear(inputs, outputs)


def gated_linear(inputs: int, outputs: int) -> GatedLinear | PackedGatedLinear:
    """A layer [items, length, inputs] -> [items, length, outputs]: silu(x gateᵀ) · (x upᵀ)."""
    return PackedGatedLinear(inputs, outputs) if _packed(inputs) else GatedLinear(inputs, outputs)


class WholeRowsLinear(Linear):
    """x weightᵀ + bias with rows of `ROW_BYTES` and multiples: zeros are put behind what there is."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        missing = -int(self.in_dim) % (ROW_BYTES // x.dtype.size_in_bytes)
        filled = F.pad(x, [0, 0] * (x.rank - 1) + [0, missing])
        return filled @ F.pad(self.weight, [0, 0, 0, missing]).T + self.bias


class GatedLinear(Module[[Tensor], Tensor]):
    """silu(x gateᵀ) · (x upᵀ), with gate and up fused into one matrix, one above the other."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.outputs = outputs
        self.weight = Tensor.zeros([2 * outputs, inputs])

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        gate, up = F.split(x @ self.weight.T, [self.outputs] * 2, axis=-1)
        return F.silu(gate) * up


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
        # A panel has 16 gates and 16 ups, so a last one that is not full has too few of both.
        self.weight = _panels(inputs, 2 * (-(-outputs // 16) * 16))

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        return ops.gated_linear(x, self.weight, self.outputs)


def _panels(inputs: int, outputs: int) -> Tensor:
    return Tensor.zeros(list(ops.packed_shape(inputs, outputs, defaults()[0])))


def _needs_whole_rows(inputs: int) -> bool:
    dtype, mesh = defaults()
    on_gpu = not mesh.devices[0].is_host
    return on_gpu and dtype == DType.bfloat16 and inputs * dtype.size_in_bytes % ROW_BYTES > 0


def _packed(inputs: int) -> bool:
    dtype, mesh = defaults()
    return runs_here(dtype, mesh.devices[0]) and ops.packable(inputs, dtype)
