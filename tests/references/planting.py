"""One number of one weight replaced: in a copy of the embedded model, or for a moment in a pipeline that is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from max.driver import Buffer
from max.dtype import DType
from safetensors.torch import load_file, save_file

from max_zimage.device.dtypes import bfloat16_bits
from max_zimage.embedded import PATH as EMBEDDED


def planted_copy(
    folder: Path, component: str, tensor: str, value: float, index: int = 0, dtype: torch.dtype | None = None
) -> Path:
    """A copy of the embedded model with one number replaced, and its component's weights in another dtype if named."""
    copy = folder / "model"
    shutil.copytree(EMBEDDED, copy)
    (file,) = (copy / component).glob("*.safetensors")
    state = load_file(file)
    if dtype is not None:
        state = {name: weight.to(dtype) for name, weight in state.items()}
    state[tensor].view(-1)[index] = value
    save_file(state, file, metadata={"format": "pt"})
    return copy


@contextmanager
def planted(weights: Mapping[str, Buffer], name: str, value: float, index: int) -> Iterator[None]:
    """A number of a loaded weight replaced: on a CPU the graphs read the memory that was loaded."""
    buffer = weights[name]
    bits = buffer.dtype == DType.bfloat16
    numbers = buffer.view(DType.uint16, (buffer.num_elements,)).to_numpy() if bits else buffer.to_numpy().reshape(-1)
    before = numbers[index].copy()
    numbers[index] = bfloat16_bits(np.array([value], np.float32))[0] if bits else value
    try:
        yield
    finally:
        numbers[index] = before
