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

from max_zimage.errors import CheckpointError
from max_zimage.strict_json import is_there

_LENGTH_BYTES = 8
# What is often found under a weight file's name, by its first bytes.
_UNSUPPORTED = "which is not supported; use safetensors"
_OTHER_KINDS: Mapping[bytes, str] = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`",
    b"GGUF": f"is a GGUF file, {_UNSUPPORTED}",
    b"lmgg": f"is a GGML file, {_UNSUPPORTED}",
    b"PK\x03\x04": f"is a PyTorch archive or another ZIP file, {_UNSUPPORTED}",
    **{bytes([0x80, protocol]): f"is a Python pickle, an old PyTorch file, {_UNSUPPORTED}" for protocol in range(2, 6)},
    b"\x89HDF": f"is an HDF5 (Keras) file, {_UNSUPPORTED}",
    b"\x93NUMPY": f"is a NumPy file, {_UNSUPPORTED}",
    b"\x08\x07\x12\x07pytorch": f"is an ONNX file, {_UNSUPPORTED}",
    b"\x1f\x8b": "is compressed with gzip; unpack it",
    b"7z\xbc\xaf\x27\x1c": "is a 7-Zip archive; unpack it",
    b"Rar!": "is a RAR archive; unpack it",
    b"BZh": "is compressed with bzip2; unpack it",
    b"\xfd7zXZ": "is compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it",
    b"\x89PNG": "is a PNG picture, not weights",
    b"\xff\xd8\xff": "is a JPEG picture, not weights",
    b"<!DOCTYPE": "is a web page, not weights; download it again",
    b"<!doctype": "is a web page, not weights; download it again",
    b"<html": "is a web page, not weights; download it again",
    b"<?xml": "is an XML document, such as an error of a storage service, not weights; download it again",
    b"{": "is JSON text, such as an index or an error of a server, not weights; download the weights themselves",
}
_BLANK = b" \t\r\n\xef\xbb\xbf"


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
    check_name(file)
    is_there(file)
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


def check_name(path: Path) -> None:
    """Refuse what the libraries that read checkpoints cannot open.

    Raises:
        CheckpointError: If the name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise CheckpointError(
            f"{shown}: the name is not UTF-8, and the safetensors and tokenizers libraries open no other; rename it"
        ) from error


def _check_kind(file: Path, size: int, beginning: bytes) -> None:
    if size == 0:
        raise CheckpointError(f"{file} is empty (0 bytes); download or copy it again")
    # The length of a safetensors header may begin like a short one of these; the header itself begins with a brace.
    sound = beginning[5:9] == b"\0\0\0{"
    for magic, what in _OTHER_KINDS.items():
        if sound and len(magic) < 4:
            continue
        if beginning.startswith(magic) or (magic[:1] in b"<{" and beginning.lstrip(_BLANK).startswith(magic)):
            raise CheckpointError(f"{file} {what}")
    if not any(beginning):
        raise CheckpointError(f"{file} begins with nothing but zeros: a download that did not end; download it again")
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
