"""Matrices as codes of eight or four bits with scales, rounded from what the files hold.

    float32 rows -> groups of neighbouring inputs -> scale of each group -> codes -> panels of 32 outputs, or turned

A scale of eight bits is the largest magnitude over 127; of four bits it is what makes the largest magnitude -8, as the
GGUF type Q4_0 has it. On a CPU codes are packed for the kernels, and `graphs.code_ops.quantized_shapes` says what is
stored where; for an accelerator a group is all inputs of an output, and the matrix is turned, see
`graphs.linear.WidenedLinear`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType

from max_zimage.checkpoint.names import Packing
from max_zimage.checkpoint.numbers import FloatArray, Read, rows_of
from max_zimage.checkpoint.tensors import at_once
from max_zimage.graphs.code_ops import quantized_shapes
from max_zimage.graphs.linear import Codes
from max_zimage.graphs.ops import PANEL, gated_rows

CodeArray = npt.NDArray[np.uint8]

_TURNED = 256  # outputs that a thread turns at a time
_PANELS = 4  # that a thread rounds at a time: whole heads, which can only be read so


def quantized(values: FloatArray, packing: Packing, codes: Codes) -> tuple[Buffer, Buffer]:
    """Round a matrix to codes.

    Args:
        values: float32 [outputs, inputs]; of a "gated" one the upper half gates the lower one.
        packing: "panels" or "gated", see `max_zimage.checkpoint.layout.packed`.
        codes: How; its group divides the inputs.

    Returns:
        uint8 and float32, in the shapes of `graphs.code_ops.quantized_shapes`, or where they are not packed int8
        [inputs, outputs] and float32 [outputs]. A group with a number that is not finite has a scale that is none
        either.
    """
    return quantized_rows(rows_of(values), values.shape, packing, codes)


def quantized_rows(read: Read, shape: tuple[int, ...], packing: Packing, codes: Codes) -> tuple[Buffer, Buffer]:
    """`quantized`, of a matrix that is nowhere in one piece: its rows are asked for a few at a time.

    Args:
        read: Gives them in float32.
        shape: Of the matrix, [outputs, inputs].
        packing: As of `quantized`.
        codes: The same.
    """
    if not codes.is_packed:
        return _turned(read, shape, codes)
    outputs, inputs = shape
    rows = gated_rows(outputs // 2) if packing == "gated" else outputs
    weight_shape, scales_shape = quantized_shapes(inputs, rows, bits=codes.bits, group=codes.group)
    packed, scales = np.empty(weight_shape, np.uint8), np.empty(scales_shape, np.float32)

    halves = 2 if packing == "gated" else 1

    def fill(begin: int) -> None:
        end = min(begin + _PANELS, len(packed))
        for panel, rows in enumerate(_panels_of(begin, end, read, outputs // halves, halves), begin):
            found, scales[panel] = _rounded(rows, codes)
            packed[panel] = _units(found, codes.bits)

    at_once(fill, range(0, len(packed), _PANELS))
    return (
        Buffer.from_numpy(packed.reshape(-1)).view(DType.uint8, weight_shape),
        Buffer.from_numpy(scales.reshape(-1)).view(DType.float32, scales_shape),
    )


def _turned(read: Read, shape: tuple[int, ...], codes: Codes) -> tuple[Buffer, Buffer]:
    outputs, inputs = shape
    turned, scales = np.empty((inputs, outputs), np.uint8), np.empty(outputs, np.float32)

    def fill(begin: int) -> None:
        rows = slice(begin, min(begin + _TURNED, outputs))
        found, (scales[rows],) = _rounded(_floats(read, rows.start, rows.stop), codes)
        turned[:, rows] = found.T ^ np.uint8(128)  # from codes around 128 to numbers around 0

    at_once(fill, range(0, outputs, _TURNED))
    return (
        Buffer.from_numpy(turned.reshape(-1)).view(DType.int8, turned.shape),
        Buffer.from_numpy(scales),
    )


def _panels_of(begin: int, end: int, read: Read, outputs: int, halves: int) -> FloatArray:
    """Rows of some panels [panels, 32, inputs], as many of each half, which has so many; zeros where there are none."""
    share, first = PANEL // halves, begin * PANEL // halves
    last = min(end * share, outputs)
    parts = [_floats(read, half * outputs + first, half * outputs + last) for half in range(halves)]
    if missing := end * share - last:
        parts = [np.pad(part, ((0, missing), (0, 0))) for part in parts]
    panels = [part.reshape(end - begin, share, -1) for part in parts]
    return np.concatenate(panels, axis=1) if halves > 1 else panels[0]


def _floats(read: Read, begin: int, end: int) -> FloatArray:
    return read(begin, end).view(np.float32)


def _rounded(rows: FloatArray, codes: Codes) -> tuple[CodeArray, FloatArray]:
    """Codes [rows, inputs], and scales [groups, rows]."""
    grouped = rows.reshape(len(rows), -1, codes.group)
    middle = 1 << (codes.bits - 1)
    if codes.bits == 8:
        scales = np.maximum(grouped.max(axis=-1), -grouped.min(axis=-1)) / np.float32(127)
    else:
        high, low = grouped.max(axis=-1), grouped.min(axis=-1)
        scales = np.where(high > -low, high, low) / np.float32(-8)
    with np.errstate(all="ignore"):  # what is not finite shows in its scale
        factors = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
        whole = np.rint(grouped * factors[..., np.newaxis])
        whole += np.float32(middle)
        found = np.clip(whole, 0, 2 * middle - 1).astype(np.uint8)
    return found.reshape(rows.shape), scales.T


def _units(codes: CodeArray, bits: int) -> CodeArray:
    """[32, inputs] -> [units, 128], or of four bits two neighbouring units in each."""
    units = codes.view(np.uint32).T  # a unit is four codes
    if bits == 4:
        units = units[0::2] | (units[1::2] << np.uint32(4))
    return np.ascontiguousarray(units).view(np.uint8)
