"""Graphs of the benchmark's own, compiled without the engine's store of artifacts, which knows only its own sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule

from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import build, trace


@dataclass(frozen=True, kw_only=True)
class CompiledModule:
    """A Module on the CPU, and the seconds that tracing, compiling (or finding in MAX's cache) and loading took."""

    model: Model
    seconds: float

    def __call__(self, *inputs: Buffer) -> list[Buffer]:
        """Run it."""
        return list(self.model.execute(*inputs))


def compiled(
    make: Callable[[], Module[..., Any]],
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


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A Module to be compiled with others: how it is made, and its `input_types`."""

    make: Callable[[], Module[..., Any]]
    types: Callable[[Any], Sequence[TensorType]]


def compiled_together(
    units: Mapping[str, Unit], dtype: ModelDtype, weights: Mapping[str, Buffer]
) -> tuple[dict[str, CompiledModule], float]:
    """Compile Modules for the CPU as one module of MAX, which compiles every kernel once.

    Args:
        units: By name.
        dtype: Of parameters.
        weights: Data of every parameter by its Module's name for it; more of them do no harm.

    Returns:
        The graphs by name, whose own `seconds` are 0, and the seconds that all of them took.
    """
    begin = time.perf_counter()
    together, traced = GraphModule(), []
    needed: dict[str, Buffer] = {}
    for name, unit in units.items():
        module = build(unit.make, DType[dtype], DeviceRef.CPU())
        needed |= {parameter: weights[parameter] for parameter, _ in module.parameters}
        traced.append(trace(module, unit.types(module), name, together))
    session = InferenceSession(devices=[CPU()])
    models = session.init_all(compile_with_kernels(session, together, traced), weights_registry=needed)
    graphs = {name: CompiledModule(model=model, seconds=0.0) for name, model in models.items()}
    return graphs, time.perf_counter() - begin
