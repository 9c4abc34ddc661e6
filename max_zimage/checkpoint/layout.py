"""The order and the bits of weights, as the graphs want them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from max.driver import CPU, Buffer
from max.dtype import DType

from max_zimage.checkpoint.names import Packing
from max_zimage.checkpoint.numbers import Bits
from max_zimage.checkpoint.tensors import at_once
from max_zimage.device.dtypes import bfloat16_bits
from max_zimage.graphs.kernel_library import uses_cpu_kernels
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.ops import packable, packed_shape

_UNIT = np.dtype(np.uint32)
"""What the kernels read at a time: one float32 number, or two of bfloat16."""
_PIECE = 1 << 22
"""Bytes that a thread orders at a time, about."""


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
    dtype = DType.float32 if values.dtype == np.float32 else DType.bfloat16
    ordered = np.stack([_ordered(each, packing) for each in values]) if values.ndim == 3 else _ordered(values, packing)
    return Buffer.from_numpy(ordered.reshape(-1)).view(dtype, ordered.shape)


def _ordered(values: Bits, packing: Packing) -> Bits:
    """One matrix, or one convolution, as `packed` has it."""
    dtype = DType.float32 if values.dtype == np.float32 else DType.bfloat16
    per_unit = _UNIT.itemsize // values.itemsize
    # [tap, part, output, input], of which the outputs of all parts stand in one panel
    parts = values[np.newaxis].reshape(1, 2 if packing == "gated" else 1, -1, values.shape[-1])
    if packing == "taps":
        height, width, inputs, outputs = values.shape
        parts = values.reshape(height * width, 1, inputs, outputs).transpose(0, 1, 3, 2)
    taps, halves, outputs, inputs = parts.shape
    share = packed_shape(inputs, outputs, dtype)[2] // per_unit // halves  # outputs of a panel from one part
    panels, units = -(-outputs // share), -(-inputs // per_unit)
    missing = (panels * share - outputs, units * per_unit - inputs)
    # Nothing is missing from the matrices of the published models, the largest of which is not to be copied twice.
    filled = np.pad(parts, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1]))) if any(missing) else parts
    whole = np.ascontiguousarray(filled).view(_UNIT).reshape(taps, halves, panels, share, units)
    ordered = np.empty((panels, taps, units, halves, share), _UNIT)

    step = max(1, _PIECE * panels // ordered.nbytes)

    def order(begin: int) -> None:
        ordered[begin : begin + step] = whole[:, :, begin : begin + step].transpose(2, 0, 4, 1, 3)

    at_once(order, range(0, panels, step))
    shape = (panels, *((taps,) if packing == "taps" else ()), units, halves * share * per_unit)
    return ordered.view(values.dtype).reshape(shape)


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
