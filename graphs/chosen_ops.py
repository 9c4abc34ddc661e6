"""The op of `kernels` that multiplies each item by one of several weights; `graphs.model.adapted` uses it."""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import Dim, TensorType

from max_zimage.graphs.cpu import inner_loop
from max_zimage.graphs.kernel_library import libraries


def chosen_linear(x: Tensor, weight: Tensor, which: Tensor, outputs: Dim | int) -> Tensor:
    """Product x weightᵀ on a CPU, each item by one of several weights; the twin is MAX's Linear, item by item.

    Args:
        x: float32 or bfloat16 [items, length, inputs].
        weight: The same dtype, [weights, panels, units, numbers], each packed as `graphs.ops.linear` wants it.
        which: int32 [items], the weight of each item.
        outputs: How many.

    Returns:
        The same dtype, [items, length, outputs].
    """
    return F.custom(
        "max_zimage.chosen_linear",
        x.device,
        [x, weight, which],
        [TensorType(x.dtype, [*x.shape[:2], outputs], x.device)],
        parameters={"widened": x.dtype == DType.bfloat16 and inner_loop() == "widened"},
        custom_extensions=libraries(),
    )[0]
