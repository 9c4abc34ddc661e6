"""Tensors of files that are to be written: their names, shapes and sizes at once, their bytes a piece at a time.

tensors of the input -> entries (rows of them, under the names of the output) -> items (how they are stored)
"""

from __future__ import annotations

import json
import mmap
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from max_zimage.checkpoint.expand import ParameterSource
from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.plan import ParameterRecipe
from max_zimage.checkpoint.tensors import Files, StoredTensor, Tensor
from max_zimage.checkpoint.writers.encodings import E4M3_MAX, FLOATS, Encoding, e4m3

_READ = 1 << 20  # numbers that are read at a time: what adapters add comes in such blocks
_CHUNK = 1 << 18  # numbers that are converted at a time: the temporaries stay in the cache

Bytes = npt.NDArray[Any] | memoryview


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor, along axis 0."""

    tensor: Tensor
    begin: int
    end: int


@dataclass(frozen=True)
class Entry:
    """A tensor of the output: the rows that it is stacked from.

    Attributes:
        name: Its name there.
        shape: Its dimensions there; the rows may have others of size 1 besides.
        parts: The rows, in order.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Rows, ...]

    @property
    def own(self) -> str:
        """The name of the dtype, of `FLOATS`, that holds what its parts are stored as; bfloat16 for quantized ones."""
        names = {_OWN.get(part.tensor.storage, "bfloat16") for part in self.parts}
        return names.pop() if len(names) == 1 else "float32"

    def pieces(self, files: Files) -> Iterator[FloatArray]:
        """Its numbers in float32, some rows [rows, …] at a time."""
        width = prod(self.shape[1:])
        read, step = max(1, _READ // width), max(1, _CHUNK // width)
        for part in self.parts:
            for begin in range(part.begin, part.end, read):
                rows = part.tensor.rows(begin, min(begin + read, part.end), files)
                rows = rows.reshape(len(rows), *self.shape[1:])
                yield from (rows[first : first + step] for first in range(0, len(rows), step))

    @cached_property
    def _sizes(self) -> dict[str, np.float32]:
        return {}

    def largest(self, files: Files) -> np.float32:
        """The largest absolute number, looked for once; NaN and infinite ones do not count."""
        if "largest" not in self._sizes:
            found = np.float32(0)
            for rows in self.pieces(files):
                sizes = np.abs(rows)
                found = max(found, sizes.max(initial=0, where=np.isfinite(sizes)))
            self._sizes["largest"] = np.float32(found)
        return self._sizes["largest"]


_OWN = {encoding.word: name for name, encoding in FLOATS.items()}


@dataclass(frozen=True)
class Item(ABC):
    """A tensor as it stands in a file.

    Attributes:
        name: Its name.
        shape: Its dimensions.
    """

    name: str
    shape: tuple[int, ...]

    @property
    @abstractmethod
    def word(self) -> str:
        """What the file calls its numbers."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """How many bytes it has."""

    @abstractmethod
    def pieces(self, files: Files) -> Iterator[Bytes]:
        """All its bytes, a piece at a time."""


@dataclass(frozen=True)
class Plain(Item):
    """An entry in one of the encodings."""

    entry: Entry
    encoding: Encoding

    @property
    @override
    def word(self) -> str:
        return self.encoding.word

    @property
    @override
    def nbytes(self) -> int:
        return self.encoding.nbytes(self.shape)

    @override
    def pieces(self, files: Files) -> Iterator[Bytes]:
        for part in self.entry.parts:
            tensor = part.tensor
            if isinstance(tensor, StoredTensor) and tensor.storage == self.word == tensor.dtype:
                yield from _as_they_stand(tensor, part, files)
            else:
                for rows in Entry(self.name, self.shape, (part,)).pieces(files):
                    yield self.encoding.checked(self.name, rows)


def _as_they_stand(tensor: StoredTensor, rows: Rows, files: Files) -> Iterator[Bytes]:
    """The bytes of rows whose numbers need no change."""
    source = files[tensor.file]
    width = tensor.nbytes // (tensor.shape[0] if tensor.shape else 1)
    last = tensor.start + rows.end * width
    for start in range(tensor.start + rows.begin * width, last, 16 * _CHUNK):
        end = min(start + 16 * _CHUNK, last)
        yield memoryview(source)[start:end]
        first = start - start % mmap.PAGESIZE
        source.madvise(mmap.MADV_DONTNEED, first, end - first)  # as where tensors are loaded


@dataclass(frozen=True)
class Scaled(Item):
    """A matrix in float8 e4m3, in units of its `Scale`."""

    entry: Entry

    @property
    @override
    def word(self) -> str:
        return "F8_E4M3"

    @property
    @override
    def nbytes(self) -> int:
        return prod(self.shape)

    @override
    def pieces(self, files: Files) -> Iterator[Bytes]:
        encoding = e4m3(scale_of(self.entry, files))
        for rows in self.entry.pieces(files):
            yield encoding.checked(self.name, rows)


@dataclass(frozen=True)
class Scale(Item):
    """What a matrix in float8 is to be multiplied by: one float32 number."""

    entry: Entry

    @property
    @override
    def word(self) -> str:
        return "F32"

    @property
    @override
    def nbytes(self) -> int:
        return 4

    @override
    def pieces(self, files: Files) -> Iterator[Bytes]:
        yield np.array([scale_of(self.entry, files)], np.float32)


@dataclass(frozen=True)
class Json(Item):
    """A JSON text as a vector of bytes."""

    content: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, value: object) -> Json:
        """Make one."""
        content = json.dumps(value).encode()
        return cls(name, (len(content),), content)

    @property
    @override
    def word(self) -> str:
        return "U8"

    @property
    @override
    def nbytes(self) -> int:
        return len(self.content)

    @override
    def pieces(self, files: Files) -> Iterator[Bytes]:
        yield memoryview(self.content)


def scale_of(entry: Entry, files: Files) -> np.float32:
    """The scale by which a matrix's largest number is float8's largest; 1 for a matrix of zeros."""
    scale = np.float32(entry.largest(files) / np.float32(E4M3_MAX))
    return scale if scale > 0 else np.float32(1)


def entries(recipes: Sequence[ParameterRecipe], wanted: Sequence[ParameterSource]) -> list[Entry]:
    """Cut the parameters of an input into the tensors of an output.

    Args:
        recipes: Of a plan that leaves nothing unused.
        wanted: The same parameters, in the same order, in the naming of the output.
    """
    made = []
    for recipe, target in zip(recipes, wanted, strict=True):
        begin = 0
        for part in target.parts:
            count = part.shape[0]
            made.append(Entry(part.name, part.shape, tuple(_rows(recipe.parts, begin, begin + count))))
            begin += count
    return sorted(made, key=lambda entry: natural(entry.name))


def _rows(tensors: Sequence[Tensor], begin: int, end: int) -> Iterator[Rows]:
    """Rows of tensors that are stacked."""
    first = 0
    for tensor in tensors:
        last = first + tensor.shape[0]
        if max(begin, first) < min(end, last):
            yield Rows(tensor, max(begin, first) - first, min(end, last) - first)
        first = last


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which layer 10 comes after layer 9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]
