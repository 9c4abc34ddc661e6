"""The op of `kernels` that multiplies each item by low-rank parts of its own too; `graphs.model.adapted` uses it."""

from __future__ import annotations

from max.experimental.tensor import Tensor

from max_zimage.graphs.kernel_library import own
from max_zimage.graphs.ops import widened


def adapted_linear(
    x: Tensor, weight: Tensor, down: Tensor, up: Tensor, which: Tensor, outputs: int, *, gated: bool = False
) -> Tensor:
    """Product x weightᵀ + (x downᵀ) upᵀ on a CPU, summed in float32, the parts of each item its own.

    What leaves down is rounded to the dtype, everything else once, at the end. Items without parts have the bits of
    `graphs.ops.linear`, or of `graphs.ops.gated_linear`.

    Args:
        x: float32 or bfloat16 [items, length, inputs].
        weight: The same dtype, packed from [outputs, inputs], see `graphs.ops.packed_shape`; where it is gated as
            `graphs.ops.gated_linear` has it.
        down: The same dtype, [parts, rank / 32, units, numbers]: matrices [rank, inputs], each packed likewise.
        up: The same dtype, [parts, panels, units, numbers]: matrices [outputs, rank], each packed as the weight is.
        which: int32 [items], the parts of each item; below 0 for none.
        outputs: How many; half of the weight's where it is gated.
        gated: Whether silu(gate) · up of the sums is made.

    Returns:
        The same dtype, [items, length, outputs].
    """
    parameters = {**widened(x.dtype), "gated": gated}
    return own("adapted_linear", [x, weight, down, up, which], x, [*x.shape[:2], outputs], parameters)
