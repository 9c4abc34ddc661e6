"""The order and the bits of weights, as the graphs want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import CPU, Buffer
from max.dtype import DType

from max_zimage.checkpoint.names import Packing
from max_zimage.checkpoint.numbers import Bits, Read, rows_of
from max_zimage.checkpoint.tensors import at_once
from max_zimage.device.dtypes import ModelDtype, bfloat16_bits
from max_zimage.graphs.kernel_library import uses_cpu_kernels
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.ops import PANEL, packable

_UNIT = np.dtype(np.uint32)
"""What the kernels read at a time: one float32 number, or two of bfloat16."""
_PIECE = 1 << 20
"""Bytes that a thread orders at a time, about: what the second-level cache of a core holds."""
_HEADS = 4
"""Panels with whole heads, of 64 or 128 outputs: others are read for each piece that has a part of them."""


def deinterleave_pairs(rows: Bits, heads: int, head_dim: int) -> None:
    """Put the first numbers of a head's pairs before the second ones, in place; a head at a time needs little memory.

    Args:
        rows: [outputs, inputs], or [outputs, 1] of a vector.
        heads: How many of the leading heads have pairs.
        head_dim: Rows of a head.
    """
    for head in range(heads):
        pairs = rows[head * head_dim : (head + 1) * head_dim]
        pairs[:] = np.concatenate([pairs[0::2], pairs[1::2]])


def packs(packing: Packing | None, shape: tuple[int, ...], dtype: DType) -> bool:
    """Whether a parameter of this shape can be packed; only matrices whose inputs are no whole units cannot.

    Several matrices in one parameter always can: the op that takes them reads its inputs one by one.
    """
    return packing is not None and (packing == "taps" or len(shape) == 3 or packable(shape[1], dtype))


def packed(values: Bits, packing: Packing) -> Buffer:
    """Order a parameter as the kernels of `graphs.ops` take it.

    Args:
        values: float32 numbers, or bfloat16's bits; a matrix [outputs, inputs], several of them [matrices, outputs,
            inputs], or for "taps" [height, width, inputs, outputs].
        packing: "panels": 32 outputs side by side. "gated": of the matrix's two halves 16 each. "taps": each tap a
            matrix.

    Returns:
        [panels, units, 32 numbers a unit], see `graphs.ops.packed_shape`; of several matrices [matrices, panels, units,
        numbers], and for "taps" [panels, taps, units, numbers].
    """
    if packing == "taps":
        height, width, inputs, outputs = values.shape
        taps = [rows_of(tap.T) for tap in values.reshape(height * width, inputs, outputs)]
        return _buffer(_ordered(taps, (outputs, inputs), packing, values.dtype))
    if values.ndim == 3:
        each = [_ordered([rows_of(matrix)], matrix.shape, packing, values.dtype)[:, 0] for matrix in values]
        return _buffer(np.stack(each))
    return _buffer(_ordered([rows_of(values)], values.shape, packing, values.dtype)[:, 0])


def packed_rows(read: Read, shape: tuple[int, ...], packing: Packing, dtype: ModelDtype) -> Buffer:
    """`packed`, of a matrix that is nowhere in one piece: its rows are asked for a few at a time.

    Args:
        read: Gives them in the dtype.
        shape: Of the matrix, [outputs, inputs].
        packing: "panels" or "gated".
        dtype: The numbers'.
    """
    kind = np.dtype(np.float32 if dtype == "float32" else np.uint16)
    return _buffer(_ordered([read], shape, packing, kind)[:, 0])


def _buffer(ordered: npt.NDArray[Any]) -> Buffer:
    dtype = DType.float32 if ordered.dtype == np.float32 else DType.bfloat16
    return Buffer.from_numpy(ordered.reshape(-1)).view(dtype, ordered.shape)


def _ordered(taps: Sequence[Read], shape: tuple[int, ...], packing: Packing, kind: np.dtype[Any]) -> Bits:
    """Matrices of one shape, side by side: [panels, taps, units, numbers of a unit].

    A piece is read, and written in its order, while it is in a processor's cache.
    """
    per_unit, halves = _UNIT.itemsize // kind.itemsize, 2 if packing == "gated" else 1
    share, outputs, inputs = PANEL // halves, shape[0] // halves, shape[1]  # of one half: outputs of a panel, and all
    panels, units = -(-outputs // share), -(-inputs // per_unit)
    ordered = np.empty((panels, len(taps), units, halves, share), _UNIT)
    step = max(1, _PIECE // (PANEL * units * _UNIT.itemsize))
    step -= step % _HEADS if step > _HEADS else 0

    def order(begin: int) -> None:
        end = min(begin + step, panels)
        for tap, read in enumerate(taps):
            for half in range(halves):
                before = half * outputs
                rows = read(before + begin * share, before + min(end * share, outputs))
                missing = ((end - begin) * share - len(rows), units * per_unit - inputs)
                filled = np.pad(rows, [(0, each) for each in missing]) if any(missing) else rows
                whole = np.ascontiguousarray(filled).view(_UNIT).reshape(end - begin, share, units)
                ordered[begin:end, tap, :, half] = whole.transpose(0, 2, 1)

    at_once(order, range(0, panels, step))
    numbers: Bits = ordered.view(kind).reshape(panels, len(taps), units, PANEL * per_unit)
    return numbers


def weight_buffer(values: npt.NDArray[np.float32], dtype: DType, packing: Packing | None) -> Buffer:
    """A parameter as a graph on a CPU takes it, packed where the graphs' layers are.

    Args:
        values: Its numbers, in the shape that the plain layer has.
        dtype: What they are rounded to, float32 or bfloat16.
        packing: How the loader would pack it.
    """
    rounded: Bits = values if dtype == DType.float32 else bfloat16_bits(values)
    if packing is not None and uses_cpu_kernels(dtype, CPU()) and packs(packing, values.shape, dtype):
        return packed(rounded, packing)
    return Buffer.from_numpy(np.ascontiguousarray(rounded).reshape(-1)).view(dtype, values.shape)


def apart(weights: dict[str, Buffer], *, instead: bool = False) -> dict[str, Buffer]:
    """Matrices of queries and keys, and of values, out of those that hold all three; see `graphs.model.blocks`.

    Args:
        weights: A transformer's, in host memory.
        instead: Whether nobody wants those that hold all three: quantized ones are taken out as soon as there are
            copies, so that there never are two of more than one.

    Returns:
        "….attention.qk.weight" [2 dim, dim] and "….attention.v.weight" [dim, dim] of every block: views. Quantized ones
        are turned, and copies, with "….scales" beside them.
    """
    parts = {}
    for name in [*weights]:
        stem, found, kind = name.rpartition(".qkv.")
        if found:
            taken_out = instead and weights[name].dtype == DType.int8
            whole = weights.pop(name) if taken_out else weights[name]
            values = max(int(side) for side in whole.shape) // 3 * 2
            for part, outputs in (("qk", slice(0, values)), ("v", slice(values, None))):
                parts[f"{stem}.{part}.{kind}"] = _outputs(whole, outputs)
    return parts


def _outputs(whole: Buffer, outputs: slice) -> Buffer:
    """Some outputs of a matrix, of a quantized one, or of its scales."""
    if whole.dtype == DType.int8:
        return Buffer.from_numpy(np.ascontiguousarray(whole.to_numpy()[:, outputs]))
    return whole[outputs, :] if len(whole.shape) == 2 else whole[outputs]


def modulated_norms(weights: Mapping[str, Buffer], spec: TransformerSpec) -> Buffer:
    """Weights of the norms that modulation multiplies, [num_blocks, 4, dim].

    See `graphs.model.conditioning.ModulationTable`.

    Args:
        weights: A transformer's, in host memory.
        spec: Its shape.
    """
    blocks = [f"noise_refiner.{i}" for i in range(spec.num_refiner_layers)]
    blocks += [f"layers.{i}" for i in range(spec.num_layers)]
    norms = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
    rows = [weights[f"{block}.{norm}.weight"] for block in blocks for norm in norms]
    size = spec.dim * rows[0].dtype.size_in_bytes
    bits = np.concatenate([row.view(DType.uint8, (size,)).to_numpy() for row in rows])
    return Buffer.from_numpy(bits).view(rows[0].dtype, (len(blocks), len(norms), spec.dim))
