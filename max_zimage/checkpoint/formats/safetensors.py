"""safetensors files: where each tensor stands, read from the header alone.

The safetensors library checks a file; its Python interface does not say where a tensor lies and cannot give bfloat16 to
numpy, so places and bytes are read here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from max_zimage.checkpoint.tensors import Contents, StoredTensor
from max_zimage.errors import CheckpointError

_LENGTH_BYTES = 8
# What is often found under a weight file's name, by its first bytes.
_UNSUPPORTED = "which is not supported; use safetensors or GGUF"
_OTHER_KINDS: Mapping[bytes, str] = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`",
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


def read(file: Path) -> Contents:
    """All tensors of a file, and the metadata of its header.

    Raises:
        CheckpointError: If it is empty, truncated, damaged or of another kind.
        OSError: If it cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        beginning = start + stream.read(24 - len(start))
        _check_kind(file, size, beginning)
        stream.seek(_LENGTH_BYTES)
        length = struct.unpack("<Q", start)[0]
        _check_length(file, size, length)
        entries = _entries(file, stream.read(length))
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{file} is damaged: its header holds as __metadata__ no JSON object")
    found = [_info(file, name, entry, _LENGTH_BYTES + length) for name, entry in entries.items()]
    if not found:
        raise CheckpointError(f"{file} holds no tensor; it was written without weights")
    end = max(info.start + info.nbytes for info in found)
    if end > size:
        raise CheckpointError(
            f"{file} is truncated: its tensors end at byte {end}, the file at {size}; download or copy it again"
        )
    _check_with_library(file)
    return Contents(found, metadata, "safetensors")


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
    return entries


def _info(file: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            if all(isinstance(size, int) for size in shape) and 0 <= start <= end:
                return StoredTensor(file, name, dtype, tuple(shape), data_start + start, end - start)
    raise CheckpointError(f"{file} is damaged: its header describes tensor {name} as {entry!r}")


def _check_with_library(file: Path) -> None:
    """Shapes that do not fit their bytes, holes, overlaps, bytes beyond the last tensor, unknown dtypes."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
