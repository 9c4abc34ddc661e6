"""Graphs of the benchmark's own, compiled without the engine's store of artifacts, which knows only its own sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.graph import DeviceRef, TensorType

from graphs.layers import build
from max_zimage.checkpoint import ModelDtype


@dataclass(frozen=True, kw_only=True)
class CompiledModule:
    """A Module on the CPU, and the seconds that tracing, compiling (or finding in MAX's cache) and loading took."""

    model: Model
    seconds: float

    def __call__(self, *inputs: Buffer) -> list[Buffer]:
        """Run it."""
        return list(self.model.execute(*inputs))


def compiled(
    make: Callable[[], Module[..., object]],
    dtype: ModelDtype,
    types: Sequence[TensorType],
    weights: Mapping[str, Buffer],
) -> CompiledModule:
    """Compile a Module for the CPU, its parameters in `dtype`."""
    begin = time.perf_counter()
    staged = build(make, DType[dtype], DeviceRef.CPU()).trace(*types, name="benchmark")
    session = InferenceSession(devices=[CPU()])
    model = session.init(session.compile_reusing_mefs(staged.graph), weights_registry=dict(weights))
    return CompiledModule(model=model, seconds=time.perf_counter() - begin)
