"""Matrix products with weights: plain, or packed for the kernels of a CPU.

`linear` and `gated_linear` choose by the dtype and device that parameters are declared in, and by their widths. The
plain layers define what the packed ones compute; these round once, after all that is fused.

Reference: diffusers models/transformers/transformer_z_image.py, FeedForward (SwiGLU).
"""

from __future__ import annotations

from max.experimental import functional as F
from max.experimental.nn import Linear, Module
from max.experimental.tensor import Tensor, defaults

from max_zimage.graphs import gpu_ops, ops
from max_zimage.graphs.kernel_library import runs_on_nvidia, uses_cpu_kernels


def linear(inputs: int, outputs: int, *, bias: bool = False) -> Linear | PackedLinear | PackedBiasedLinear:
    """A layer [..., inputs] -> [..., outputs]."""
    if not _packed(inputs):
        return Linear(inputs, outputs, bias=bias)
    return PackedBiasedLinear(inputs, outputs) if bias else PackedLinear(inputs, outputs)


def gated_linear(inputs: int, outputs: int) -> GatedLinear | PackedGatedLinear:
    """A layer [items, length, inputs] -> [items, length, outputs]: silu(x gateᵀ) · (x upᵀ)."""
    return PackedGatedLinear(inputs, outputs) if _packed(inputs) else GatedLinear(inputs, outputs)


class GatedLinear(Module[[Tensor], Tensor]):
    """silu(x gateᵀ) · (x upᵀ), with gate and up fused into one matrix, one above the other."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.outputs = outputs
        self.weight = Tensor.zeros([2 * outputs, inputs])

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        both = x @ self.weight.T
        if runs_on_nvidia(both.dtype, both.device) and gpu_ops.has_swiglu(self.outputs):
            return gpu_ops.swiglu(both, self.outputs)
        gate, up = F.split(both, [self.outputs] * 2, axis=-1)
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


def _packed(inputs: int) -> bool:
    dtype, mesh = defaults()
    return uses_cpu_kernels(dtype, mesh.devices[0]) and ops.packable(inputs, dtype)
