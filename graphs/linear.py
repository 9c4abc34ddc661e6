"""Matrix products with weights, plain or packed for a CPU's bfloat16 instructions.

`linear` and `gated_linear` choose by the dtype and device that parameters are declared in. The plain layers define what
the packed ones compute; the packed ones round once, after all that is fused.

Reference: diffusers models/transformers/transformer_z_image.py, FeedForward (SwiGLU).
"""

from __future__ import annotations

from max.experimental import functional as F
from max.experimental.nn import Linear, Module
from max.experimental.tensor import Tensor, defaults

from graphs import ops


def linear(inputs: int, outputs: int) -> Linear | PackedLinear:
    """A layer [items, length, inputs] -> [items, length, outputs] without bias."""
    if _packed(inputs, outputs):
        return PackedLinear(inputs, outputs)
    return Linear(inputs, outputs, bias=False)


def gated_linear(inputs: int, outputs: int) -> GatedLinear | PackedGatedLinear:
    """A layer [items, length, inputs] -> [items, length, outputs]: silu(x gateᵀ) · (x upᵀ)."""
    return PackedGatedLinear(inputs, outputs) if _packed(inputs, 2 * outputs) else GatedLinear(inputs, outputs)


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
    """x weightᵀ in bfloat16 on a CPU. The weight is packed as `graphs.ops.linear` wants it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = Tensor.zeros(list(ops.packed_shape(inputs, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        return ops.linear(x, self.weight)


class PackedGatedLinear(Module[[Tensor], Tensor]):
    """`GatedLinear` in bfloat16 on a CPU. The weight is packed as `graphs.ops.gated_linear` wants it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = Tensor.zeros(list(ops.packed_shape(inputs, 2 * outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, inputs] -> [items, length, outputs]."""
        return ops.gated_linear(x, self.weight)


def _packed(inputs: int, outputs: int) -> bool:
    dtype, mesh = defaults()
    return ops.runs_here(dtype, mesh.devices[0]) and ops.packable(inputs, outputs)
