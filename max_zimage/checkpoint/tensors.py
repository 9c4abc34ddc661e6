"""The named tensors of a checkpoint, whatever file or transform they come from.

Names, shapes and dtypes are known at once; numbers are read a piece at a time, from maps of the files.
"""

from __future__ import annotations

import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType
from typing_extensions import override

from max_zimage.checkpoint.numbers import READ, Bits, FloatArray, round_to
from max_zimage.device.dtypes import ModelDtype

_CHUNK = 1 << 20  # numbers converted at a time: the temporaries stay in the processor's cache
_WINDOW = 1 << 17  # bytes: of one call Linux reads no more ahead than the device's window, which is that or more
_MAX_THREADS = 8
T = TypeVar("T")


class Files(dict[Path, mmap.mmap]):
    """Maps of files, each made when it is first asked for; writes to what they show never reach the files."""

    def __missing__(self, file: Path) -> mmap.mmap:
        """Map a file so that arrays over it are writable, as MAX requires."""
        with file.open("rb") as stream:
            self[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        return self[file]


@dataclass(frozen=True)
class Tensor(ABC):
    """A named tensor.

    Attributes:
        file: Where it comes from.
        name: Its name there.
        dtype: The format's word for what its numbers are stored as, such as "BF16".
        shape: Its dimensions.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    in_threads: ClassVar[bool] = False
    """Whether pieces of it are made at the same time: where that takes longer than to read them."""

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def storage(self) -> str:
        """What its numbers are stored as, in a word for people: the dtype, or the name of a quantized format."""
        return self.dtype

    @abstractmethod
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        """Some of its numbers.

        Args:
            begin: First row, along axis 0; a scalar is one row.
            end: The row behind the last one.
            files: Where they are read from.

        Returns:
            float32 [end - begin, …] like `shape`, the caller's to change.
        """

    def fill(self, target: Bits, files: Files) -> None:
        """Write all numbers, rounded once, without having more than a piece of them in memory besides.

        Args:
            target: Of the model's dtype, [size].
            files: Where they are read from.
        """
        count = self.shape[0] if self.shape else 1
        width = self.size // count
        step = max(1, _CHUNK // width)

        def fill_rows(begin: int) -> None:
            end = min(begin + step, count)
            round_to(target[begin * width : end * width], self.rows(begin, end, files).reshape(-1))

        starts = range(0, count, step)
        if not self.in_threads:
            for begin in starts:
                fill_rows(begin)
            return
        _ = files[self.file]  # mapped once, before threads look for it
        at_once(fill_rows, starts)

    def in_place(self, dtype: ModelDtype, files: Files) -> Buffer | None:
        """The numbers where the file is mapped, if they stand there in the model's dtype; keeps the map alive."""
        return None

    def ahead(self) -> None:
        """Have the system begin to read it from the disk, where it knows such a thing."""
        return


def at_once(make: Callable[[T], None], pieces: Sequence[T]) -> None:
    """Make pieces at the same time, by as many threads as there are processors, eight at most."""
    if len(pieces) == 1:
        make(pieces[0])
        return
    with ThreadPoolExecutor(max(1, min(_MAX_THREADS, len(pieces), os.cpu_count() or 1))) as threads:
        for _done in threads.map(make, pieces):
            pass


@dataclass(frozen=True)
class StoredTensor(Tensor):
    """A tensor that stands in one piece in a file, row after row, in one of the dtypes of `numbers.READ`.

    Attributes:
        start: First byte, counted from the file's beginning.
        nbytes: Its length.
    """

    start: int
    nbytes: int

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        width = self.size // (self.shape[0] if self.shape else 1)
        values = np.empty((end - begin) * width, np.float32)
        self.fill_part(begin * width, values, files)
        return values.reshape(end - begin, *self.shape[1:])

    @override
    def fill(self, target: Bits, files: Files) -> None:
        for begin in range(0, self.size, _CHUNK):
            self.fill_part(begin, target[begin : begin + _CHUNK], files)

    @override
    def ahead(self) -> None:
        if hasattr(os, "posix_fadvise"):
            with self.file.open("rb") as stream:
                end = self.start + self.nbytes
                for begin in range(self.start, end, _WINDOW):
                    os.posix_fadvise(stream.fileno(), begin, min(_WINDOW, end - begin), os.POSIX_FADV_WILLNEED)

    @override
    def in_place(self, dtype: ModelDtype, files: Files) -> Buffer | None:
        if READ[self.dtype].model_dtype != dtype:
            return None
        # Bytes, because numpy knows no bfloat16. MAX takes weights at any alignment.
        raw = np.frombuffer(files[self.file], np.uint8, self.nbytes, self.start)
        return Buffer.from_numpy(raw).view(DType[dtype], self.shape)

    def codes(self, begin: int, end: int, files: Files) -> npt.NDArray[Any]:
        """Some of its rows as they are stored, in numpy's dtype of `numbers.READ`; the caller's to change."""
        kind, source = READ[self.dtype].raw, files[self.file]
        width = self.size // (self.shape[0] if self.shape else 1)
        start, count = self.start + begin * width * kind.itemsize, (end - begin) * width
        values = np.frombuffer(source, kind, count, start).copy()
        _give_back(source, start, count * kind.itemsize)
        return values.reshape(end - begin, *self.shape[1:])

    def fill_part(self, begin: int, target: Bits, files: Files) -> None:
        """Write as many numbers as the target takes, rounded once.

        Args:
            begin: The first of them.
            target: Of the model's dtype, [numbers].
            files: Where they are read from.
        """
        stored, source = READ[self.dtype], files[self.file]
        start = self.start + begin * stored.raw.itemsize
        stored.convert(np.frombuffer(source, stored.raw, target.size, start), target)
        _give_back(source, start, target.size * stored.raw.itemsize)


def bytes_of(file: Path, start: int, count: int, files: Files) -> npt.NDArray[np.uint8]:
    """A copy of bytes of a file."""
    raw = np.frombuffer(files[file], np.uint8, count, start).copy()
    _give_back(files[file], start, count)
    return raw


def _give_back(source: mmap.mmap, start: int, count: int) -> None:
    """Drop pages that were read; a neighbour's that goes with them is read again when it is needed."""
    first = start - start % mmap.PAGESIZE
    source.madvise(mmap.MADV_DONTNEED, first, start + count - first)


@dataclass(frozen=True)
class Contents:
    """What one file holds.

    Attributes:
        tensors: All of them.
        metadata: What stands in the header beside them: strings, and in GGUF numbers, too.
        container: The kind of file.
    """

    tensors: Sequence[Tensor]
    metadata: Mapping[str, object]
    container: str


@dataclass(frozen=True)
class Source:
    """Tensors of files, by name.

    Attributes:
        files: Where they come from.
        tensors: Name -> tensor.
        metadata: File -> what stands in its header beside the tensors.
        containers: The kinds of the files, such as "safetensors", each once.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[Path, Mapping[str, object]] = field(default_factory=dict)
    containers: tuple[str, ...] = ("safetensors",)
