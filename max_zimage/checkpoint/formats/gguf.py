"""GGUF files, of llama.cpp, ComfyUI-GGUF and stable-diffusion.cpp: tensors in blocks of a few bits a number.

The header is read here: the gguf library's reader keeps every word of a tokenizer as an array of its own, and takes a
file that was cut off for a shorter one. Numbers are the library's, block by block along a row, so that any rows can be
had alone.

Reference: ggml docs/gguf.md; city96/ComfyUI-GGUF tools/convert.py for shapes that GGUF cannot hold.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import ClassVar

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from typing_extensions import override

from max_zimage.checkpoint.formats.gguf_kinds import check_kind
from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Contents, Files, StoredTensor, Tensor, bytes_of
from max_zimage.errors import CheckpointError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST = 1 << 20  # of keys, tensors and dimensions: a damaged count is not to be counted up to
_KEPT = 16  # longer lists, such as a tokenizer's words, are passed over
_SHOWN = 5
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
_PLAIN: Mapping[GGMLQuantizationType, str] = {
    GGMLQuantizationType.F32: "F32",
    GGMLQuantizationType.F16: "F16",
    GGMLQuantizationType.BF16: "BF16",
}
_KINDS = {kind.value: kind for kind in GGMLQuantizationType}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9


@dataclass(frozen=True)
class GgufTensor(Tensor):
    """A tensor in blocks of one of ggml's types; its dtype is F32, for float32 is what they become.

    Attributes:
        kind: Which type.
        start: First byte, counted from the file's beginning.
        nbytes: Its length.
    """

    kind: GGMLQuantizationType
    start: int
    nbytes: int
    in_threads: ClassVar[bool] = True

    @property
    @override
    def storage(self) -> str:
        return str(self.kind.name)

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        count = self.shape[0] if self.shape else 1
        width = self.size // count
        per_block, _ = GGML_QUANT_SIZES[self.kind]
        # A row that is no whole number of blocks, as a number of a vector is not, can only be had with all others.
        first, last = (begin, end) if width % per_block == 0 else (0, count)
        row_bytes = self.nbytes // count if width % per_block == 0 else 0
        taken = (last - first) * row_bytes or self.nbytes
        # As one row: the library takes sixteen rows at a time, and a block is no row to it.
        blocks = bytes_of(self.file, self.start + first * row_bytes, taken, files).reshape(1, -1)
        values = np.asarray(quants.dequantize(blocks, self.kind), np.float32)
        values = values.reshape(last - first, *self.shape[1:])
        return values if first == begin else values[begin:end]


def read(file: Path) -> Contents:
    """All tensors of a file, and the metadata of its header without long lists.

    Raises:
        CheckpointError: If it is truncated, damaged, of another version or byte order, one of several parts, or holds
            what is no part of this pipeline: a LoRA, a vision tower, another model.
        OSError: If it cannot be read.
    """
    with file.open("rb") as stream:
        if file.stat().st_size < 24:
            raise CheckpointError(f"{file} is truncated: no GGUF file is so short; download or copy it again")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Header(file, data)
            try:
                metadata, infos, start = header.read()
            except struct.error as error:
                raise CheckpointError(
                    f"{file} is truncated: its header does not end within it; download or copy it again"
                ) from error
            size = len(data)
    check_kind(file, metadata, [info.name for info in infos])
    if not infos:
        raise CheckpointError(f"{file} holds no tensor; it was written without weights")
    problems: list[str] = []
    tensors = [made for info in infos if (made := _tensor(file, info, start, size, metadata, problems)) is not None]
    if len({info.name for info in infos}) < len(infos):
        problems.append("a tensor's name stands twice")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(f"{file} cannot be loaded: {'; '.join(problems[:_SHOWN])}{more}")
    return Contents(tensors, metadata, "GGUF")


@dataclass(frozen=True)
class _Info:
    name: str
    dims: tuple[int, ...]
    kind: int
    offset: int


class _Header:
    """Reads a header from front to back."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.at = file, data, len(MAGIC)

    def read(self) -> tuple[dict[str, object], list[_Info], int]:
        """Metadata, tensors, and where their data begins."""
        version = int(self.number("I"))
        if version not in _VERSIONS:
            swapped = version != 0 and version & 0xFFFF == 0
            what = "is a big-endian GGUF file; convert it to little-endian" if swapped else f"is GGUF version {version}"
            raise CheckpointError(f"{self.file} {what}; supported are the little-endian versions 2 and 3")
        tensors, keys = self.count("Q", "tensors"), self.count("Q", "keys")
        metadata: dict[str, object] = {}
        for _ in range(keys):
            name = self.text()
            metadata[name] = self.value(int(self.number("I")))
        infos = [self.info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise CheckpointError(f"{self.file} is damaged: general.alignment is {alignment}, and no power of two")
        return metadata, infos, -(-self.at // alignment) * alignment

    def info(self) -> _Info:
        name, dims = self.text(), self.count("I", "dimensions")
        shape = tuple(int(self.number("Q")) for _ in range(dims))
        return _Info(name, shape, int(self.number("I")), int(self.number("Q")))

    def number(self, code: str) -> int | float | bool:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def count(self, code: str, of: str) -> int:
        value = int(self.number(code))
        if value > _MOST:
            raise CheckpointError(f"{self.file} is damaged: its header speaks of {value} {of}")
        return value

    def text(self) -> str:
        length = int(self.number("Q"))
        self._within(length)
        self.at += length
        return self.data[self.at - length : self.at].decode(errors="backslashreplace")

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.text()
        if kind == _LIST:
            return self._list()
        return self.number(self._code(kind))

    def _list(self) -> object:
        kind, length = int(self.number("I")), int(self.number("Q"))
        if kind in (_STRING, _LIST):
            read: Callable[[], object] = self.text if kind == _STRING else self._list
            self._within(length)  # each takes some bytes
            kept = [read() for _ in range(length)]
        else:
            code = self._code(kind)
            width = struct.calcsize(code)
            self._within(length * width)
            kept = [self.number(code) for _ in range(min(length, _KEPT + 1))]
            self.at += (length - len(kept)) * width
        return kept if length <= _KEPT else None

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.file} is damaged: its header holds a value of the unknown kind {kind}")
        return _SCALARS[kind]

    def _within(self, length: int) -> None:
        if self.at + length > len(self.data):
            raise struct.error


def _tensor(
    file: Path, info: _Info, start: int, size: int, metadata: Mapping[str, object], problems: list[str]
) -> Tensor | None:
    kind = _KINDS.get(info.kind)
    if kind is None or not _decodes(kind):
        named = f"type {info.kind}" if kind is None else kind.name
        problems.append(f"tensor {info.name} is of {named}, which is not supported; use Q8_0, a K type or BF16")
        return None
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    shape = tuple(reversed(info.dims))
    if prod(shape) == 0 or (shape and shape[-1] % per_block):
        problems.append(f"tensor {info.name} of shape {list(shape)} is no whole number of {kind.name} blocks")
        return None
    first, nbytes = start + info.offset, prod(shape) // per_block * block_bytes
    if first + nbytes > size:
        problems.append(f"tensor {info.name} ends at byte {first + nbytes}, the file at {size}: it is truncated")
        return None
    original = metadata.get(f"{_ORIGINAL_SHAPE}{info.name}")
    if isinstance(original, list):
        if not all(isinstance(each, int) and each > 0 for each in original) or prod(original) != prod(shape):
            problems.append(f"tensor {info.name} is {list(shape)} and should have been {original}")
            return None
        shape = tuple(original)
    if kind in _PLAIN:
        return StoredTensor(file, info.name, _PLAIN[kind], shape, first, nbytes)
    return GgufTensor(file, info.name, "F32", shape, kind, first, nbytes)


@cache
def _decodes(kind: GGMLQuantizationType) -> bool:
    """Whether the library makes numbers of a type."""
    if kind in _PLAIN:
        return True
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
