"""The kinds of files that hold weights: named tensors out of every one of them.

A format is a file in this folder and a line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from max_zimage.checkpoint.formats import gguf, safetensors
from max_zimage.checkpoint.tensors import Contents, Source, Tensor
from max_zimage.errors import CheckpointError
from max_zimage.strict_json import is_there

Reader = Callable[[Path], Contents]
"""All tensors of a file, from its header alone; OSError or CheckpointError if it cannot be read."""

FORMATS: Mapping[bytes, Reader] = {gguf.MAGIC: gguf.read}
"""First bytes of a file -> what reads it. What begins otherwise is taken for safetensors, which have no such mark."""


def open_source(files: Sequence[Path]) -> Source:
    """Read the headers of a component's files.

    Args:
        files: One file, or all shards.

    Returns:
        Every tensor of every file; no tensor data is read.

    Raises:
        CheckpointError: With every file that is absent, empty, truncated, damaged or of another kind, and every tensor
            that is in two files.
    """
    problems: list[str] = []
    tensors: dict[str, Tensor] = {}
    read: dict[Path, Contents] = {}
    for file in files:
        try:
            read[file] = _contents_of(file)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for tensor in read[file].tensors:
            if tensor.name in tensors:
                problems.append(f"tensor {tensor.name} is in two files, {tensors[tensor.name].file} and {file}")
            tensors[tensor.name] = tensor
    if problems:
        raise CheckpointError("\n".join(problems))
    metadata = {file: contents.metadata for file, contents in read.items()}
    containers = dict.fromkeys(contents.container for contents in read.values())
    return Source(tuple(files), tensors, metadata, tuple(containers))


def _contents_of(file: Path) -> Contents:
    _check_name(file)
    is_there(file)
    try:
        with file.open("rb") as stream:
            beginning = stream.read(max(map(len, FORMATS), default=0))
        reader = next((FORMATS[magic] for magic in FORMATS if beginning.startswith(magic)), safetensors.read)
        return reader(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error


def _check_name(path: Path) -> None:
    """Refuse what the libraries that read checkpoints cannot open."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise CheckpointError(
            f"{shown}: the name is not UTF-8, and the safetensors and tokenizers libraries open no other; rename it"
        ) from error
