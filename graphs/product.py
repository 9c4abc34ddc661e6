"""One product of matrices on a CPU, as a graph of its own: what the ways to multiply bfloat16 are compared by.

    x, packed weight -> x weightᵀ

Twin: `graphs.linear.Linear`.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs import ops


class Product(Module[[Tensor, Tensor], Tensor]):
    """A layer whose weight is an argument.

    Args:
        rows: Of x.
        inputs: Of the layer.
        outputs: Of the layer.
    """

    def __init__(self, rows: int, inputs: int, outputs: int) -> None:
        self.rows, self.inputs, self.outputs = rows, inputs, outputs

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: [1, rows, inputs].
            weight: Packed, see `graphs.ops.packed_shape`.

        Returns:
            [1, rows, outputs].
        """
        return ops.linear(x, weight, self.outputs)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        packed = ops.packed_shape(self.inputs, self.outputs, dtype)
        return TensorType(dtype, [1, self.rows, self.inputs], device), TensorType(dtype, [*packed], device)
