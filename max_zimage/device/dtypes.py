"""The dtypes that a model runs in: their names, their sizes, and bits that numpy has no dtype for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # a process that computes nothing needs no MAX
    from max.driver import Device

ModelDtype = Literal["float32", "bfloat16"]
DTYPES: tuple[ModelDtype, ...] = ("float32", "bfloat16")
BYTES: Mapping[ModelDtype, int] = {"float32": 4, "bfloat16": 2}


def model_dtype(name: str, device: Device) -> ModelDtype:
    """Choose the dtype that a model runs in.

    Args:
        name: "float32", "bfloat16", or "auto": bfloat16 on an accelerator, float32 on a CPU, where pictures are the
            reference's to a rounding; bfloat16 is the faster one if it has AVX-512 BF16.
        device: Where the model runs.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "auto":
        return "float32" if device.is_host else "bfloat16"
    for dtype in DTYPES:
        if name == dtype:
            return dtype
    raise ValueError(f'dtype must be "auto", {" or ".join(repr(dtype) for dtype in DTYPES)}, got {name!r}')


def encoding_dtype(encoding: str) -> ModelDtype:
    """The dtype that MAX's encoding of weights names.

    Raises:
        ValueError: If it is none that a model runs in.
    """
    for dtype in DTYPES:
        if encoding == dtype:
            return dtype
    allowed = " or ".join(DTYPES)
    raise ValueError(f"encoding must be {allowed}, got {encoding}; quantized weights are decoded to one of these")


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to bfloat16, to the nearest and ties to even.

    Args:
        values: float32 numbers in any shape; NaN stays NaN.

    Returns:
        The upper halves of the rounded numbers' bits, in the same shape.
    """
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    # Rounding could carry a NaN's bits into those of an infinity or a zero; the quiet bit keeps it one.
    kept = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(values), kept, rounded).astype(np.uint16)
