"""How a graph's Module is made for a dtype and a device.

The layers themselves (`Linear`, `RMSNorm`, `ModuleList`) are MAX's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import default_device, default_dtype
from max.graph import DeviceRef

ModuleT = TypeVar("ModuleT", bound=Module[..., Any])


def build(make: Callable[[], ModuleT], dtype: DType, device: DeviceRef) -> ModuleT:
    """Make a Module whose parameters are declared in `dtype` on `device` and hold no data.

    Args:
        make: Constructor without arguments, e.g. `lambda: DenoiseStep(spec)`.
        dtype: Dtype of every parameter.
        device: Where the graph runs.

    Returns:
        The Module, ready for `trace` or `compile`.
    """
    with F.lazy(), default_dtype(dtype), default_device(device):
        return make()
