"""Weights from files into the buffers that the graphs take, under the graphs' names.

    files -> headers -> plan (format found, every name, shape and dtype checked) -> buffers

A plan reads headers only, so everything that is wrong with a checkpoint is said before anything is compiled. Loading
maps the files: a tensor that is used as it stands stays in the map, and any other is written once into its own buffer
while the pages it came from are given back, so that a component is never in memory twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from max_zimage.checkpoint.expand import ParameterSource, ParameterTable, weights
from max_zimage.checkpoint.headers import Header, TensorInfo, map_file
from max_zimage.checkpoint.layout import Bits, deinterleave_pairs, packed, packs
from max_zimage.checkpoint.names import Layout, Naming, Packing
from max_zimage.checkpoint.recognition import recognized
from max_zimage.device.dtypes import BYTES, ModelDtype, bfloat16_bits
from max_zimage.errors import CheckpointError

_FORMAT_DTYPES: Mapping[str, ModelDtype | Literal["float16"]] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_CHUNK = 1 << 20  # numbers converted at a time: the temporaries stay in the processor's cache
_SHOWN = 5  # names shown of each kind of problem


@dataclass(frozen=True)
class ParameterRecipe:
    """How one parameter is made.

    Attributes:
        engine: The graphs' name.
        parts: Tensors of the files, stacked along axis 0.
        layout: How each part is turned first.
        shape: Of the result.
        rotary_heads: Leading heads of the result whose pairs are brought apart.
        head_dim: Their width.
        packing: How the result is packed where the graphs take it packed.
    """

    engine: str
    parts: tuple[TensorInfo, ...]
    layout: Layout
    shape: tuple[int, ...]
    rotary_heads: int = 0
    head_dim: int = 0
    packing: Packing | None = None


@dataclass(frozen=True)
class LoadPlan:
    """A checked component, ready to load.

    Attributes:
        component: Its folder's name.
        format: Which naming the files use, in words.
        files: Where it comes from.
        steps: How every parameter is made.
        dropped: Tensors of the files that are not loaded -> why.
    """

    component: str
    format: str
    files: tuple[Path, ...]
    steps: tuple[ParameterRecipe, ...]
    dropped: Mapping[str, str]

    @property
    def dtype(self) -> ModelDtype:
        """The dtype that most of the weights have in the files; float32 stands for float16 too."""
        counts = {"BF16": 0, "F16": 0, "F32": 0}
        for step in self.steps:
            for part in step.parts:
                counts[part.dtype] += prod(part.shape)
        return "bfloat16" if counts["BF16"] > counts["F16"] + counts["F32"] else "float32"

    def nbytes(self, dtype: ModelDtype) -> int:
        """Memory that the loaded weights take in a dtype."""
        return sum(prod(step.shape) for step in self.steps) * BYTES[dtype]


def plan(names: ParameterTable, header: Header) -> LoadPlan:
    """Check a component's files against what the graphs need.

    Args:
        names: From `text_encoder_names`, `transformer_names` or `vae_names`.
        header: From `scan`.

    Returns:
        What to load from where.

    Raises:
        CheckpointError: With the format that was recognized and the counts and first names of all tensors that are
            missing, unexpected, or of the wrong shape or dtype.
    """
    naming, prefix = _recognize(names, header)
    written = weights(names, naming, prefix)
    label = names.namings[naming] + (f" behind {prefix!r}" if prefix else "")
    dropped = {
        (prefix if entry.prefixed else "") + entry.name: entry.reason
        for entry in names.dropped
        if (prefix if entry.prefixed else "") + entry.name in header.tensors
    }
    _check(names.component, label, written, header, dropped)
    steps = []
    for weight in written:
        parts = tuple(header.tensors[part.name] for part in weight.parts)
        if weight.unused is None:
            shape = _result_shape(parts, weight.layout)
            heads = weight.rotary_heads, weight.head_dim
            steps.append(ParameterRecipe(weight.engine, parts, weight.layout, shape, *heads, weight.packing))
        else:
            dropped |= {part.name: weight.unused for part in parts}
    return LoadPlan(names.component, label, header.files, tuple(steps), dropped)


def load(
    checked: LoadPlan, dtype: ModelDtype, *, to_pack: bool = False, keep_filters: bool = False
) -> dict[str, Buffer]:
    """Load a component.

    Args:
        checked: Its plan.
        dtype: Of every parameter. Numbers are rounded to the nearest, ties to even.
        to_pack: Whether parameters that have a packing are packed, where their sizes allow it.
        keep_filters: Whether convolutions stay in the files' order, which is cuDNN's: [out, in, height, width].

    Returns:
        Engine name -> buffer in host memory. A buffer that views a file keeps it mapped.
    """
    maps = {file: map_file(file) for file in checked.files}
    steps = [_as_stored(step) if keep_filters and step.layout == "conv" else step for step in checked.steps]
    return {step.engine: _load_step(step, maps, dtype, to_pack) for step in steps}


def _recognize(names: ParameterTable, header: Header) -> tuple[Naming, str]:
    """The naming and prefix under which most of the expected tensors are found."""
    found = {
        (naming, prefix): sum(
            part.name in header.tensors for weight in weights(names, naming, prefix) for part in weight.parts
        )
        for naming in names.namings
        for prefix in names.prefixes
    }
    best = max(found, key=lambda choice: found[choice])
    if found[best] == 0:
        known = " or ".join(names.namings.values())
        what = recognized(header.tensors)
        raise CheckpointError(
            f"{names.component}: {_files(header)} holds none of the expected tensors in {known}; it "
            f"{'' if what is None else f'is {what}. It '}holds {_list(sorted(header.tensors))}"
        )
    return best


def _check(
    component: str, label: str, written: Sequence[ParameterSource], header: Header, dropped: Mapping[str, str]
) -> None:
    expected = {part.name: part.shape for weight in written for part in weight.parts}
    tensors = header.tensors
    both = [name for name in expected if name in tensors]
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": sorted(name for name in tensors if name not in expected and name not in dropped),
        "of the wrong shape": [
            f"{name} is {list(tensors[name].shape)} and must be {list(expected[name])}"
            for name in both
            if tensors[name].shape != expected[name]
        ],
        "of the wrong dtype": [
            f"{name} is {tensors[name].dtype} and must be one of {', '.join(_FORMAT_DTYPES)}"
            for name in both
            if tensors[name].dtype not in _FORMAT_DTYPES
        ],
    }
    if not any(problems.values()):
        return
    counts = ", ".join(f"{len(which)} {what}" for what, which in problems.items() if which)
    lines = [f"{component}: {_files(header)} ({label}) does not fit {component}/config.json: {counts}"]
    lines += [f"  {what}: {_list(which)}" for what, which in problems.items() if which]
    if problems["of the wrong dtype"]:
        lines.append(
            "  quantized weights (8 bits and fewer) are not supported yet; use a bfloat16 or float32 checkpoint"
        )
    raise CheckpointError("\n".join(lines))


def _result_shape(parts: Sequence[TensorInfo], layout: Layout) -> tuple[int, ...]:
    rows, rest = sum(part.shape[0] for part in parts), parts[0].shape[1:]
    if layout == "conv":
        return (*rest[1:], rest[0], rows)
    return (rows, rest[0]) if layout == "matrix" else (rows, *rest)


def _as_stored(step: ParameterRecipe) -> ParameterRecipe:
    """The step of a convolution, without the turn."""
    return replace(step, layout="same", shape=step.parts[0].shape, packing=None)


def _load_step(step: ParameterRecipe, maps: Mapping[Path, mmap.mmap], dtype: ModelDtype, to_pack: bool) -> Buffer:
    first = step.parts[0]
    packing = step.packing if to_pack and packs(step.packing, step.shape, DType[dtype]) else None
    in_place = step.layout != "conv" and not step.rotary_heads and packing is None
    if in_place and len(step.parts) == 1 and _FORMAT_DTYPES[first.dtype] == dtype:
        # MAX takes weights at any alignment. Bytes, because numpy knows no bfloat16.
        raw = np.frombuffer(maps[first.file], np.uint8, first.nbytes, first.start)
        return Buffer.from_numpy(raw).view(DType[dtype], step.shape)
    values: Bits
    if step.layout == "conv":
        height, width, into, out = step.shape
        stacked = _stack(step.parts, maps, dtype)
        values = np.empty(step.shape, stacked.dtype)
        values[:] = stacked.reshape(out, into, height, width).transpose(2, 3, 1, 0)
    else:
        values = _stack(step.parts, maps, dtype)
        deinterleave_pairs(values.reshape(step.shape[0], -1), step.rotary_heads, step.head_dim)
    if packing:
        return packed(values.reshape(step.shape), packing)
    return Buffer.from_numpy(values.reshape(-1)).view(DType[dtype], step.shape)


def _stack(parts: Sequence[TensorInfo], maps: Mapping[Path, mmap.mmap], dtype: ModelDtype) -> Bits:
    """The parts' numbers one after another, converted; bfloat16 as its bits."""
    count = sum(prod(part.shape) for part in parts)
    values: Bits = np.empty(count, np.float32) if dtype == "float32" else np.empty(count, np.uint16)
    done = 0
    for part in parts:
        count, size = prod(part.shape), part.nbytes // prod(part.shape)
        for begin in range(0, count, _CHUNK):
            length = min(_CHUNK, count - begin)
            start = part.start + begin * size
            _convert(maps[part.file], part.dtype, start, values[done : done + length])
            _release(maps[part.file], start, length * size)
            done += length
    return values


def _convert(source: mmap.mmap, format_dtype: str, start: int, target: Bits) -> None:
    """Fill the target with as many numbers, read from a byte of the map on."""
    if format_dtype == "BF16":
        bits = np.frombuffer(source, np.uint16, target.size, start)
        if target.dtype == np.uint16:
            target[:] = bits
        else:
            np.left_shift(bits, np.uint32(16), out=target.view(np.uint32), dtype=np.uint32)
        return
    values = np.frombuffer(source, np.float32 if format_dtype == "F32" else np.float16, target.size, start)
    if target.dtype == np.float32:
        target[:] = values
    else:
        target[:] = bfloat16_bits(values.astype(np.float32))


def _release(source: mmap.mmap, start: int, nbytes: int) -> None:
    """Give the pages of a range back; a neighbour's page that goes with them is read again when it is needed."""
    begin = start - start % mmap.PAGESIZE
    source.madvise(mmap.MADV_DONTNEED, begin, start + nbytes - begin)


def _files(header: Header) -> str:
    first = header.files[0]
    return str(first) if len(header.files) == 1 else f"{first} with {len(header.files) - 1} more shards"


def _list(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
