"""Tensors that some tools write in another shape or in pieces: padding tokens without an axis, and split matrices.

References: city96/ComfyUI-GGUF loader.py (padding tokens); leejet/stable-diffusion.cpp, which keeps the three matrices
of a checkpoint in diffusers' layout as `qkv.weight`, `qkv.weight.1` and `qkv.weight.2`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, Source, Tensor
from max_zimage.errors import CheckpointError

_PADDING = ("x_pad_token", "cap_pad_token")


@dataclass(frozen=True)
class Stacked(Tensor):
    """Matrices one below the other.

    Attributes:
        parts: In order.
    """

    parts: tuple[Tensor, ...]

    @property
    @override
    def storage(self) -> str:
        return self.parts[0].storage

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        found, at = [], 0
        for part in self.parts:
            first, last = max(begin - at, 0), min(end - at, part.shape[0])
            if first < last:
                found.append(part.rows(first, last, files))
            at += part.shape[0]
        return found[0] if len(found) == 1 else np.concatenate(found)


def reshaped(source: Source) -> Source:
    """Give padding tokens their axis, and stack what stands in pieces.

    Raises:
        CheckpointError: If one of the pieces is missing, or they are not equally wide.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in source.tensors.items():
        if name.endswith(_PADDING) and len(tensor.shape) == 1:
            tensors[name] = replace(tensor, shape=(1, *tensor.shape))
        elif name.endswith(".qkv.weight") and f"{name}.1" in source.tensors:
            tensors[name] = _stacked(source, name)
        elif not (name.endswith((".qkv.weight.1", ".qkv.weight.2")) and name[:-2] in source.tensors):
            tensors[name] = tensor
    return source if tensors == source.tensors else replace(source, tensors=tensors)


def _stacked(source: Source, name: str) -> Stacked:
    names = (name, f"{name}.1", f"{name}.2")
    if names[2] not in source.tensors:
        raise CheckpointError(f"{source.files[0]} holds {names[0]} and {names[1]}, and lacks {names[2]}")
    parts = tuple(source.tensors[each] for each in names)
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise CheckpointError(f"{source.files[0]}: {name} stands in pieces that are not equally wide: {shapes}")
    first = parts[0]
    return Stacked(first.file, name, "F32", (sum(part.shape[0] for part in parts), *first.shape[1:]), parts)
