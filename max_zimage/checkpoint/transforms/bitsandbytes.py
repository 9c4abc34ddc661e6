"""Weights of bitsandbytes: four bits a number by a table (NF4, FP4), or int8 with a scale for each row.

Four-bit numbers stand in one row of bytes, the first of two in the upper half; blocks of them share a largest absolute
value, and these may be bytes of a table of their own, with an offset and a scale for blocks of blocks.

Reference: bitsandbytes functional.py, QuantState and dequantize_4bit; transformers integrations/bitsandbytes.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, Source, StoredTensor
from max_zimage.checkpoint.transforms.base import Decoded
from max_zimage.checkpoint.transforms.layers import Layers
from max_zimage.checkpoint.transforms.microscaled import nibbles
from max_zimage.checkpoint.transforms.scaled import Scaled
from max_zimage.strict_json import shown

_STATE = "weight.quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")


@dataclass(frozen=True)
class Nested:
    """Largest absolute values that are bytes of a table.

    Attributes:
        table: float32 [256].
        scales: Of blocks of blocks.
        block: How many of a block.
        offset: Added to every one.
    """

    table: StoredTensor
    scales: StoredTensor
    block: int
    offset: float


@dataclass(frozen=True)
class FourBit(Decoded):
    """A weight of four bits a number.

    Attributes:
        packed: [bytes] of all numbers, row after row.
        table: float32 [16], what the codes stand for.
        largest: Of each block, float32 or bytes.
        block: Numbers of a block.
        nested: What the bytes of `largest` mean.
    """

    packed: StoredTensor
    table: StoredTensor
    largest: StoredTensor
    block: int
    nested: Nested | None

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        width = self.size // self.shape[0]
        first, last = begin * width, end * width
        codes = self.packed.codes(first // 2, -(-last // 2), files)
        table = self.table.rows(0, 16, files)
        values = nibbles(codes[np.newaxis], table, high_first=True)[0, first % 2 :][: last - first]
        block = first // self.block
        largest = np.repeat(self._largest(block, -(-last // self.block), files), self.block)
        values = values * largest[first - block * self.block :][: last - first]
        return values.reshape(end - begin, *self.shape[1:])

    def _largest(self, begin: int, end: int, files: Files) -> FloatArray:
        if self.nested is None:
            return self.largest.rows(begin, end, files)
        nested, first = self.nested, begin // self.nested.block
        scales = nested.scales.rows(first, -(-end // nested.block), files)
        values = nested.table.rows(0, 256, files)[self.largest.codes(begin, end, files)]
        values *= np.repeat(scales, nested.block)[begin - first * nested.block :][: end - begin]
        values += np.float32(nested.offset)
        return values


@dataclass(frozen=True)
class RowInt8(Scaled):
    """An int8 weight in units of a 127th of the largest absolute value of each row."""

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        values = super().rows(begin, end, files)
        values /= np.float32(127)
        return values


def bitsandbytes(source: Source) -> Source:
    """Decode weights of four and of eight bits.

    Raises:
        CheckpointError: If a weight's state cannot be read, or its tensors do not fit to it.
    """
    found = Layers(source)
    for kind in _KINDS:
        for layer in found.ending(f"{_STATE}{kind}"):
            _four_bit(found, layer, kind)
    for layer in found.ending("SCB"):
        _int8(found, layer)
    return found.done("quantized by bitsandbytes")


def _four_bit(found: Layers, layer: str, kind: str) -> None:
    state = found.described(f"{layer}.{_STATE}{kind}") or {}
    match state:
        case {"shape": [int(rows), int(columns)], "blocksize": int(block), "quant_type": str(said)} if said == kind:
            pass
        case _:
            found.problems.append(
                f"{layer}: its quant_state must hold shape, blocksize and quant_type, got {shown(state)}"
            )
            return
    count = rows * columns
    packed = found.tensors.get(f"{layer}.weight")
    if not isinstance(packed, StoredTensor) or packed.dtype != "U8" or packed.size != -(-count // 2) or block < 1:
        what = "nothing" if packed is None else f"{packed.dtype} {list(packed.shape)}"
        found.problems.append(f"{layer}.weight is {what} and must be U8 [{-(-count // 2)}, 1] of {[rows, columns]}")
        return
    blocks, is_nested = -(-count // block), "nested_blocksize" in state
    table = found.coded(layer, "weight.quant_map", ("F32",), 16)
    largest = found.coded(layer, "weight.absmax", ("U8",) if is_nested else ("F32",), blocks)
    nested = _nested(found, layer, state, blocks) if is_nested else None
    if table is not None and largest is not None and (nested is not None or not is_nested):
        told = packed.file, packed.name, "F32", (rows, columns), kind
        found.put(FourBit(*told, _flat(packed), _flat(table), _flat(largest), block, nested))


def _nested(found: Layers, layer: str, state: object, blocks: int) -> Nested | None:
    match state:
        case {"nested_blocksize": int(block), "nested_offset": int(offset) | float(offset)} if block > 0:
            table = found.coded(layer, "weight.nested_quant_map", ("F32",), 256)
            scales = found.coded(layer, "weight.nested_absmax", ("F32",), -(-blocks // block))
            if table is not None and scales is not None:
                return Nested(_flat(table), _flat(scales), block, float(offset))
        case _:
            found.problems.append(f"{layer}: its quant_state has no nested_blocksize and nested_offset")
    return None


def _flat(tensor: StoredTensor) -> StoredTensor:
    return replace(tensor, shape=(tensor.size,))


def _int8(found: Layers, layer: str) -> None:
    weight = found.weight(layer, ["I8"])
    scale = found.coded(layer, "SCB", ("F32",), 1 if weight is None else weight.shape[0])
    order = found.take(f"{layer}.weight_format")
    if order is not None and order.rows(0, order.size, found.files).any():
        found.problems.append(f"{layer}: its weight_format is not 0, rows; save it again with a newer bitsandbytes")
    if weight is None or scale is None:
        return
    values = scale.rows(0, scale.size, found.files)
    if not (np.isfinite(values) & (values >= 0)).all():
        found.problems.append(f"{scale.name} holds a number that is none, or negative")
        return
    found.put(RowInt8(weight.file, weight.name, "F32", weight.shape, "int8 of bitsandbytes", weight, scale))
