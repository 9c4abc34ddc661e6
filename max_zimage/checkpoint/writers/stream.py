"""Weight files, written a piece at a time, so that no tensor is in memory as a whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from max_zimage import progress
from max_zimage.checkpoint.tensors import Files
from max_zimage.checkpoint.writers import gguf, safetensors
from max_zimage.checkpoint.writers.items import Item
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.host.sizes import gigabytes


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file that is to be written.

    Attributes:
        path: Below the output's folder; empty where the output is this one file.
        items: Its tensors, in order.
        metadata: Of the whole file.
        is_gguf: Whether it is a GGUF file rather than safetensors.
        text_encoder: For GGUF, the shape of the text encoder that it holds, if it does.
    """

    path: str
    items: Sequence[Item]
    metadata: Mapping[str, str]
    is_gguf: bool = False
    text_encoder: TextEncoderSpec | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(item.nbytes for item in self.items)


def write_weights(root: Path, written: Sequence[WeightFile], name: str) -> None:
    """Write files and have the system put them on the disk.

    Args:
        root: The output, or its folder.
        written: The files.
        name: Of the output, for those who wait.

    Raises:
        CheckpointError: If numbers cannot be stored as asked.
        OSError: If a file cannot be written.
    """
    files, shown_rate = Files(), _Rate(sum(file.nbytes for file in written))
    with progress.stage(f"Writing {name}", sum(len(file.items) for file in written)) as shown:
        for file in written:
            path = root / file.path if file.path else root
            path.parent.mkdir(parents=True, exist_ok=True)
            if file.is_gguf:
                gguf.begin(path, file.items, file.metadata, file.text_encoder)
            else:
                safetensors.begin(path, file.items, file.metadata)
            alignment = gguf.ALIGNMENT if file.is_gguf else safetensors.ALIGNMENT
            with path.open("ab") as stream:
                for item in file.items:
                    _pad(stream, alignment)
                    _write(stream, item, files, shown_rate.add)
                    shown.advance(f"{item.name}, {shown_rate}")
                _pad(stream, alignment)
                stream.flush()
                os.fsync(stream.fileno())


def _write(stream: BinaryIO, item: Item, files: Files, add: Callable[[int], None]) -> None:
    count = 0
    for piece in item.pieces(files):
        data = piece if isinstance(piece, memoryview) else np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        stream.write(data)
        count += data.nbytes
        add(data.nbytes)
    if count != item.nbytes:
        raise RuntimeError(f"{item.name} has {count} bytes where {item.nbytes} were announced")


def _pad(stream: BinaryIO, alignment: int) -> None:
    stream.write(bytes(-stream.tell() % alignment))


class _Rate:
    """How many bytes are written, of how many and how fast."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._began = total, 0, time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes."""
        self._done += count

    def __str__(self) -> str:
        rate = self._done / max(time.monotonic() - self._began, 1e-3)
        return f"{gigabytes(self._done)} of {gigabytes(self._total)}, {rate / 1e6:.0f} MB/s"
