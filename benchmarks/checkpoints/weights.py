"""Random weights, made and written piece by piece: a component of any size passes through a few megabytes of memory.

    names and shapes -> shards -> header, then pieces of each tensor, each put in its place by one of several threads

A piece's numbers depend on the seed, the component, the tensor and the piece alone: neither the number of threads nor
the size of the shards changes them. In bfloat16 they are the float32 ones, rounded.

Values keep activations near one through every layer, so that bfloat16 holds them: a matrix is divided by the root of
its fan-in, weights of norms lie around one, biases are small, the modulation of a block by the timestep is small, and
pad tokens and embeddings are as large as what stands beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from huggingface_hub import split_state_dict_into_shards_factory

from max_zimage import progress
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.checkpoint.expand import Expected, text_encoder_names, transformer_names, vae_names, weights
from max_zimage.device.dtypes import ModelDtype, bfloat16_bits

_PIECE = 1 << 20  # numbers made at a time by one thread
_BYTES: Mapping[ModelDtype, int] = {"float32": 4, "bfloat16": 2}
_CODES: Mapping[ModelDtype, str] = {"float32": "F32", "bfloat16": "BF16"}
_PREFIXES = {"text_encoder": "model.", "transformer": "", "vae": ""}
_STEMS = {"text_encoder": "model", "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
UNFINISHED = ".part"
"""End of the name of a file that is being written."""

Shapes = dict[str, tuple[int, ...]]


def tensors(specs: ModelSpecs) -> dict[str, Shapes]:
    """Component -> name -> shape of everything that a checkpoint of this shape holds, layer by layer."""
    tables = {
        "text_encoder": text_encoder_names(specs.text_encoder, specs.text_encoder.num_layers),
        "transformer": transformer_names(specs.transformer),
        "vae": vae_names(specs.vae),
    }
    found: dict[str, Shapes] = {}
    for component, names in tables.items():
        prefix = _PREFIXES[component]
        parts = [part for weight in weights(names, "diffusers", prefix) for part in weight.parts]
        if component == "text_encoder":  # not in the table of what is loaded: the engine has no use for it
            parts.append(Expected(f"{prefix}norm.weight", (specs.text_encoder.hidden_size,)))
        found[component] = {part.name: part.shape for part in sorted(parts, key=lambda part: _natural(part.name))}
    return found


def nbytes(shapes: Mapping[str, Shapes], dtype: ModelDtype) -> int:
    """Bytes of the tensors of all components."""
    return _BYTES[dtype] * sum(math.prod(shape) for component in shapes.values() for shape in component.values())


@dataclass(frozen=True)
class Shard:
    """A file to be written: its name, and its tensors in order."""

    name: str
    tensors: Shapes


@dataclass(frozen=True)
class Split:
    """The files of a component.

    Attributes:
        shards: The weights.
        index: What the index says, or None where there is one file.
        index_name: Name of the index.
    """

    shards: tuple[Shard, ...]
    index: dict[str, Any] | None
    index_name: str


def split(component: str, shapes: Shapes, dtype: ModelDtype, shard_bytes: int) -> Split:
    """Spread a component's tensors over files as `save_pretrained` does.

    Args:
        component: Its folder.
        shapes: From `tensors`.
        dtype: Of the weights.
        shard_bytes: Most bytes of tensors in a file, unless one tensor alone has more.
    """
    found = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: _BYTES[dtype] * math.prod(shape),
        filename_pattern=f"{_STEMS[component]}{{suffix}}.safetensors",
        max_shard_size=shard_bytes,
    )
    shards = (Shard(file, {name: shapes[name] for name in names}) for file, names in found.filename_to_tensors.items())
    index = {"metadata": found.metadata, "weight_map": found.tensor_to_filename} if found.is_sharded else None
    return Split(tuple(shards), index, f"{_STEMS[component]}.safetensors.index.json")


@dataclass(frozen=True)
class Piece:
    """Part of a tensor: which numbers, and where in the file they go."""

    tensor: str
    shape: tuple[int, ...]
    number: int
    count: int
    start: int


def write_component(folder: Path, files: Split, dtype: ModelDtype, seed: int | None, threads: int) -> None:
    """Write a component's shards and, once they all have their names, the index that makes them a model.

    Args:
        folder: The component's folder, which is there.
        files: From `split`.
        dtype: Of the weights.
        seed: Of the numbers; None for zeros, which take no room on the disk.
        threads: How many make and write numbers.
    """
    for shard in files.shards:
        key = None if seed is None else f"{seed}/{folder.name}"
        _write_shard(folder / shard.name, shard, dtype, key, threads)
    if files.index is not None:
        (folder / files.index_name).write_text(json.dumps(files.index, indent=2, sort_keys=True) + "\n")


def _write_shard(path: Path, shard: Shard, dtype: ModelDtype, key: str | None, threads: int) -> None:
    header = _header(shard.tensors, dtype)
    scratch, name = path.with_name(path.name + UNFINISHED), f"{path.parent.name}/{path.name}"
    end = len(header) + nbytes({"": shard.tensors}, dtype)
    pieces = [] if key is None else list(_pieces(shard.tensors, len(header), _BYTES[dtype]))
    try:
        with scratch.open("wb", buffering=0) as file, progress.stage(name, len(pieces)) as shown:
            _write_at(file.fileno(), 0, header)
            os.ftruncate(file.fileno(), end)

            def write(piece: Piece) -> str:
                numbers = values(str(key), piece)
                data = bfloat16_bits(numbers) if dtype == "bfloat16" else numbers
                _write_at(file.fileno(), piece.start, data.tobytes())
                return piece.tensor

            with _Pool(threads) as pool:
                for tensor in pool.map(write, pieces):
                    shown.advance(tensor)
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


class _Pool(ThreadPoolExecutor):
    """Threads that leave what they have not begun as soon as something goes wrong."""

    def __exit__(self, *error: object) -> None:
        self.shutdown(wait=True, cancel_futures=error[0] is not None)


def _write_at(file: int, start: int, data: bytes) -> None:
    """Write all of it; one call takes 2 GiB at most, and less where the disk is full, which the next one then says."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written


def _header(shapes: Shapes, dtype: ModelDtype) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + _BYTES[dtype] * math.prod(shape)
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    return struct.pack("<Q", len(text)) + text


def _pieces(shapes: Shapes, start: int, item_bytes: int) -> Iterator[Piece]:
    for name, shape in shapes.items():
        size = math.prod(shape)
        for number, first in enumerate(range(0, size, _PIECE)):
            count = min(_PIECE, size - first)
            yield Piece(name, shape, number, count, start + item_bytes * first)
        start += item_bytes * size


def values(key: str, piece: Piece) -> npt.NDArray[np.float32]:
    """Make the numbers of a piece.

    Args:
        key: Seed and component.
        piece: Which part of which tensor.

    Returns:
        float32 [piece.count].
    """
    digest = hashlib.sha256(f"{key}/{piece.tensor}/{piece.number}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(list(struct.unpack("<8I", digest))))
    numbers = generator.standard_normal(piece.count, np.float32)
    mean, deviation = distribution(piece.tensor, piece.shape)
    numbers *= np.float32(deviation)
    numbers += np.float32(mean)
    return numbers


def distribution(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's numbers."""
    if name.endswith(("pad_token", "embed_tokens.weight")):
        return 0.0, 1.0
    if len(shape) > 1:
        small = 0.3 if "adaLN_modulation" in name else 1.0
        return 0.0, small / math.sqrt(math.prod(shape[1:]))
    return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.1)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which layer 10 comes after layer 9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


def weight_files(folders: Iterable[Path]) -> list[Path]:
    """What a checkpoint's folders hold of weights, finished or not."""
    ends = (".safetensors", ".safetensors.index.json", UNFINISHED)
    return [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.name.endswith(ends)]
