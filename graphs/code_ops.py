"""The op of `kernels` that multiplies quantized numbers on a CPU; `graphs.linear` decides which layers use it."""

from __future__ import annotations

from max.experimental.tensor import Tensor

from max_zimage.graphs.kernel_library import own
from max_zimage.graphs.ops import PANEL


def quantized_linear(
    x: Tensor, weight: Tensor, scales: Tensor, outputs: int, *, bits: int, group: int, gated: bool
) -> Tensor:
    """Product x weightᵀ of whole numbers, on a CPU; the twin is in `graphs.linear`.

    Both are rounded: x here, to -127 to 127 with a float32 scale for every `group` inputs of a row.

    Args:
        x: float32 or bfloat16 [items, length, inputs].
        weight: uint8, packed; see `quantized_shapes`.
        scales: float32, see there.
        outputs: How many; half of the weight's where it is gated.
        bits: Of a code, 8 or 4.
        group: Inputs that share a scale, divisible by 32.
        gated: Whether every panel has 16 gates, then the ups that belong to them: silu(x gateᵀ) · (x upᵀ).

    Returns:
        Like x, [items, length, outputs].
    """
    parameters: dict[str, bool | int] = {"bits": bits, "group": group, "gated": gated}
    return own("quantized_linear", [x, weight, scales], x, [*x.shape[:2], outputs], parameters)


def quantized_shapes(
    inputs: int, outputs: int, *, bits: int, group: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shapes of packed codes of a matrix [outputs, inputs], in bytes, and of their scales.

    Byte 4 j + i of a unit belongs to the panel's output j and to input i of the unit's four. Where codes have four
    bits, the low half of a byte belongs to a unit and the high half to the unit behind it. A code stands for what it is
    more than 128, or 8, times its scale. What does not fill the last panel is zero.
    """
    panels = -(-outputs // PANEL)
    return (panels, inputs * bits // 32, 4 * PANEL), (panels, inputs // group, PANEL)
