"""safetensors files, written: the header, and how tensors are spread over several files.

Reference: the safetensors format (github.com/huggingface/safetensors, README): an 8-byte length, a JSON header of at
most 100 MB, then all tensors one after another without holes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory

from max_zimage.checkpoint.writers.items import Item
from max_zimage.errors import CheckpointError

ALIGNMENT = 1
"""Tensors follow each other directly; those with the largest numbers come first, so that all are aligned."""
_MOST = 100_000_000  # bytes of a header
_BYTES: Mapping[str, int] = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1}


def ordered(items: Sequence[Item]) -> list[Item]:
    """Tensors in the order that they stand in the file."""
    return sorted(items, key=lambda item: -_BYTES[item.word])


def begin(path: Path, items: Sequence[Item], metadata: Mapping[str, str]) -> None:
    """Write the header.

    Args:
        path: The file, which is made.
        items: In order.
        metadata: Of the whole file.

    Raises:
        CheckpointError: If it would be longer than readers take.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for item in items:
        entries[item.name] = {
            "dtype": item.word,
            "shape": list(item.shape),
            "data_offsets": [start, start + item.nbytes],
        }
        start += item.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MOST:
        raise CheckpointError(
            f"{path.name}: the header would have {len(text):,} bytes, at most {_MOST:,} can be read; the metadata of "
            "the input is too long"
        )
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def shards(stem: str, items: Sequence[Item], most: int) -> tuple[dict[str, list[Item]], dict[str, Any] | None]:
    """Spread tensors over files as `save_pretrained` does.

    Args:
        stem: Of the files' names.
        items: In order.
        most: Bytes of tensors in a file, unless one tensor alone has more.

    Returns:
        File name -> its tensors, and the contents of the index, None where there is one file.
    """
    found = split_state_dict_into_shards_factory(
        {item.name: item for item in items},
        get_storage_size=lambda item: item.nbytes,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=most,
    )
    named = {item.name: item for item in items}
    files = {file: [named[name] for name in names] for file, names in found.filename_to_tensors.items()}
    index = {"metadata": found.metadata, "weight_map": found.tensor_to_filename} if found.is_sharded else None
    return files, index
