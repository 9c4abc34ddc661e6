"""What safetensors files hold, read from their headers alone, and their data as memory maps.

The safetensors library checks a file; its Python interface does not say where a tensor lies and cannot give bfloat16 to
numpy, so places and bytes are read here.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

_LENGTH_BYTES = 8
# What is often found under a weight file's name, by its first bytes.
_OTHER_KINDS: Mapping[bytes, str] = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`",
    b"GGUF": "is a GGUF file, which is not supported; use safetensors",
    b"PK\x03\x04": "is a PyTorch archive, which is not supported; use safetensors",
    b"<!DOCTYPE": "is a web page, not weights; download it again",
    b"<html": "is a web page, not weights; download it again",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message says which file or tensors, and why."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        file: The file.
        name: The tensor's name in it.
        dtype: The format's word for it, such as "BF16".
        shape: Its dimensions.
        start: First byte, counted from the file's beginning.
        nbytes: Its length.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """All tensors of a component's files, by name."""

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]


def scan(files: Sequence[Path]) -> Header:
    """Read the headers of a component's files.

    Args:
        files: One safetensors file, or all shards.

    Returns:
        Every tensor of every file; no tensor data is read.

    Raises:
        CheckpointError: With every file that is absent, empty, truncated, damaged or of another kind, and every tensor
            that is in two files.
    """
    problems: list[str] = []
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            found = _scan_file(file)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for info in found:
            if info.name in tensors:
                problems.append(f"tensor {info.name} is in two files, {tensors[info.name].file} and {file}")
            tensors[info.name] = info
    if problems:
        raise CheckpointError("\n".join(problems))
    return Header(tuple(files), tensors)


def map_file(file: Path) -> mmap.mmap:
    """Map a file so that arrays over it are writable, as MAX requires, and writes never reach the file."""
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)


def _scan_file(file: Path) -> list[TensorInfo]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(_LENGTH_BYTES)
            beginning = start + stream.read(24 - len(start))
            _check_kind(file, size, beginning)
            stream.seek(_LENGTH_BYTES)
            length = struct.unpack("<Q", start)[0]
            _check_length(file, size, length)
            entries = _entries(file, stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    found = [_info(file, name, entry, _LENGTH_BYTES + length) for name, entry in entries.items()]
    if not found:
        raise CheckpointError(f"{file} holds no tensor; it was written without weights")
    end = max(info.start + info.nbytes for info in found)
    if end > size:
        raise CheckpointError(
            f"{file} is truncated: its tensors end at byte {end}, the file at {size}; download or copy it again"
        )
    _check_with_library(file)
    return found


def _check_kind(file: Path, size: int, beginning: bytes) -> None:
    if size == 0:
        raise CheckpointError(f"{file} is empty (0 bytes); download or copy it again")
    for magic, what in _OTHER_KINDS.items():
        if beginning.startswith(magic):
            raise CheckpointError(f"{file} {what}")
    if size < _LENGTH_BYTES:
        raise CheckpointError(f"{file} is too short to be a safetensors file ({size} bytes)")


def _check_length(file: Path, size: int, length: int) -> None:
    if length > size - _LENGTH_BYTES:
        raise CheckpointError(
            f"{file} is truncated, or no safetensors file: its header should be {length} bytes long, and "
            f"{size - _LENGTH_BYTES} bytes follow; download or copy it again"
        )


def _entries(file: Path, header: bytes) -> dict[str, object]:
    try:
        entries = json.loads(header)
    except ValueError as error:  # of the JSON or of its encoding
        raise CheckpointError(f"{file} is damaged: its header is no JSON ({error})") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file} is damaged: its header is no JSON object")
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}


def _info(file: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            if all(isinstance(size, int) for size in shape) and 0 <= start <= end:
                return TensorInfo(file, name, dtype, tuple(shape), data_start + start, end - start)
    raise CheckpointError(f"{file} is damaged: its header describes tensor {name} as {entry!r}")


def _check_with_library(file: Path) -> None:
    """Shapes that do not fit their bytes, holes, overlaps, bytes beyond the last tensor, unknown dtypes."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
