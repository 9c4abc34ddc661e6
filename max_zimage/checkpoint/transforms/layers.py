"""Layers of a checkpoint whose weight has tensors beside it: taken one by one, with all that is wrong said at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from max_zimage.checkpoint.numbers import READ
from max_zimage.checkpoint.tensors import Files, Source, StoredTensor, Tensor
from max_zimage.errors import CheckpointError
from max_zimage.strict_json import parse_object

_SHOWN = 5
INSTEAD = "a file of the same model in bfloat16, in scaled float8, or in GGUF such as Q8_0"
_SCALES = ("F32", "F16", "BF16")


class Layers:
    """The tensors of a source, while a transform makes others of them.

    Attributes:
        tensors: What there is now.
        problems: What is wrong so far.
        source: What there was.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tensors: dict[str, Tensor] = dict(source.tensors)
        self.problems: list[str] = []
        self.files = Files()

    def done(self, what: str) -> Source:
        """What has become of the source.

        Args:
            what: The format, for the message.

        Raises:
            CheckpointError: If anything was wrong.
        """
        if self.problems:
            more = len(self.problems) - _SHOWN
            lines = "".join(f"\n  {problem}" for problem in self.problems[:_SHOWN])
            lines += f"\n  and {more} more" if more > 0 else ""
            lines += f"\nFetch it again, or use {INSTEAD}"
            raise CheckpointError(f"{self.source.files[0]} ({what}) cannot be loaded:{lines}")
        return replace(self.source, tensors=self.tensors)

    def ending(self, suffix: str) -> list[str]:
        """The layers that have a tensor of this name."""
        return [name.removesuffix(f".{suffix}") for name in self.tensors if name.endswith(f".{suffix}")]

    def take(self, name: str) -> StoredTensor | None:
        """Use a tensor up."""
        tensor = self.tensors.pop(name, None)
        return tensor if isinstance(tensor, StoredTensor) else None

    def need(self, layer: str, suffix: str) -> StoredTensor | None:
        """Use a tensor up that a layer must have; None, and a problem, if it lacks it."""
        found = self.take(f"{layer}.{suffix}")
        if found is None:
            self.problems.append(f"{layer} has no {suffix}")
        return found

    def weight(self, layer: str, dtypes: Sequence[str], dimensions: int = 2) -> StoredTensor | None:
        """A layer's weight, which is left where it is; None, and a problem, if it is another than it must be."""
        found = self.tensors.get(f"{layer}.weight")
        if not isinstance(found, StoredTensor):
            self.problems.append(f"{layer} has a scale and no weight" if found is None else f"{layer} is decoded twice")
            return None
        if found.dtype not in dtypes or len(found.shape) != dimensions:
            wanted = f"{' or '.join(dtypes)} of {dimensions} dimensions"
            given = f"{layer}.weight is {found.dtype} {list(found.shape)}"
            self.problems.append(f"{given} and must be {wanted}, for it has a scale beside it")
            return None
        return found

    def scale(self, layer: str, suffix: str, shapes: Sequence[tuple[int, ...]] = ()) -> StoredTensor | None:
        """Use up a scale of whole numbers' worth: one number, or of the shapes that are named besides.

        Its numbers are read here, for there are few, and one that is no positive number is a problem.
        """
        found = self.need(layer, suffix)
        if found is None:
            return None
        if found.dtype not in _SCALES or (found.size != 1 and found.shape not in shapes):
            wanted = " or ".join(["one number", *(str(list(shape)) for shape in shapes)])
            self.problems.append(f"{found.name} is {found.dtype} {list(found.shape)} and must be {wanted}, in float")
            return None
        values = found.rows(0, found.shape[0] if found.shape else 1, self.files)
        if not (np.isfinite(values) & (values > 0)).all():
            bad = values[~(np.isfinite(values) & (values > 0))].flat[0]
            self.problems.append(f"{found.name} holds {bad}, and a scale is a finite number above 0")
            return None
        return found

    def coded(self, layer: str, suffix: str, dtypes: Sequence[str], size: int) -> StoredTensor | None:
        """Use up a tensor of codes, such as the scales of blocks."""
        found = self.need(layer, suffix)
        if found is not None and (found.dtype not in dtypes or found.size != size):
            wanted = f"{size} numbers of {' or '.join(dtypes)}"
            self.problems.append(f"{found.name} is {found.dtype} {list(found.shape)} and must hold {wanted}")
            return None
        return found

    def described(self, name: str) -> Mapping[str, object] | None:
        """Use up a tensor whose bytes are a JSON object; None if there is none."""
        found = self.take(name)
        if found is None:
            return None
        if READ[found.dtype].raw.itemsize != 1 or len(found.shape) != 1:
            self.problems.append(f"{name} is {found.dtype} {list(found.shape)} and must be JSON text in bytes")
            return {}
        text = found.codes(0, found.shape[0], self.files).tobytes().decode(errors="replace")
        try:
            return parse_object(found.file, text)
        except CheckpointError as error:
            self.problems.append(f"{name}: {str(error).removeprefix(f'{found.file} ')}")
            return {}

    def put(self, tensor: Tensor) -> None:
        """A tensor in place of that of the same name."""
        self.tensors[tensor.name] = tensor


def quantization_config(source: Source) -> Mapping[str, object]:
    """What a header, or else the config.json beside a file, says of how its weights are quantized.

    Raises:
        CheckpointError: If that is no JSON object.
    """
    for file, metadata in source.metadata.items():
        for key in ("quantization_config", "_quantization_config"):
            if isinstance(text := metadata.get(key), str):
                return parse_object(file, text)
    for file in source.files:
        beside = file.parent / "config.json"
        if beside.is_file():
            try:
                config = json.loads(beside.read_text(encoding="utf-8-sig"))
            except ValueError:  # said with the reason where the configuration is read
                continue
            found = config.get("quantization_config") if isinstance(config, dict) else None
            if isinstance(found, dict):
                return found
    return {}
