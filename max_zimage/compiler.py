"""The one place where graphs are compiled, side by side, and the one way in which they are called.

A compiled graph takes and returns `max.driver.Buffer`s. A Buffer has no arithmetic, so nothing between two graphs can
run an eager operation, which `max serve` refuses in its worker.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from max.driver import Buffer, Device
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import TensorType
from max.profiler import Tracer

from max_zimage import progress
from max_zimage.artifacts import artifact_path, found, save

_log = logging.getLogger("max_zimage")

_AT_ONCE = max(1, min(4, os.cpu_count() or 1))  # compiling one graph keeps about one core busy and takes 1.5 GB
_POOL = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="compile")


@dataclass(frozen=True)
class _Compiled:
    model: Model
    seconds: float


class CompiledGraph:
    """A graph that is compiled, or being compiled in the background."""

    def __init__(self, name: str, future: Future[_Compiled]) -> None:
        self.name = name
        self._future = future
        self._model: Model | None = None

    def wait(self) -> float:
        """Wait until it is compiled and loaded.

        Returns:
            Seconds that took.

        Raises:
            RuntimeError: If MAX could not compile it.
        """
        compiled = self._future.result()
        self._model = compiled.model
        return compiled.seconds

    def __call__(self, *inputs: Buffer | Tensor) -> list[Buffer]:
        """Run the graph.

        Args:
            *inputs: One for each of the graph's input types, on its device.

        Returns:
            The outputs, on the graph's device; the work may still be going on there.
        """
        if self._model is None:
            self.wait()
        assert self._model is not None
        with Tracer(self.name):
            return list(self._model.execute(*map(_buffer, inputs)))


def compile_graph(
    name: str,
    module: Module[..., Any],
    input_types: Iterable[TensorType],
    weights: Mapping[str, Buffer],
    session: InferenceSession,
    *,
    spec: object,
    device: Device,
) -> CompiledGraph:
    """Load a Module's graph from the artifacts on disk, or else trace it and compile it in the background.

    Args:
        name: What progress and profiles call it.
        module: From `graphs.layers.build`.
        input_types: Its `input_types()`.
        weights: Parameter name -> data in host memory; names that the Module does not have are left aside, so that one
            component's graphs can share one mapping.
        session: Where it will run.
        spec: The frozen dataclass that the Module was made from, or None; see `artifact_path`.
        device: The device of the input types.

    Returns:
        The graph; calling it waits for the compiler.

    Raises:
        KeyError: If a parameter has no data.
    """
    types = tuple(input_types)
    needed = {parameter: weights[parameter] for parameter, _ in module.parameters}
    path = artifact_path(name, spec, module, types, device)
    # Tracing holds Python's lock and is done here; compiling does not.
    graph = None if found(path) else module.trace(*types, name=name).graph

    def run() -> _Compiled:
        begin = time.perf_counter()
        if graph is None:
            try:
                model = session.init(session.compile(path), weights_registry=needed)
                return _Compiled(model, time.perf_counter() - begin)
            except Exception:  # a damaged artifact, in whatever way MAX puts it
                _log.warning("artifact %s cannot be used; compiling %s again", path, name)
        compiled = session.compile_reusing_mefs(graph or module.trace(*types, name=name).graph)
        save(compiled, path)
        return _Compiled(session.init(compiled, weights_registry=needed), time.perf_counter() - begin)

    return CompiledGraph(name, _POOL.submit(run))


def wait_for(graphs: Iterable[CompiledGraph]) -> None:
    """Wait for graphs, showing progress."""
    waited = list(graphs)
    with progress.stage("Compiling graphs", len(waited)) as shown:
        for graph in waited:
            seconds = graph.wait()
            shown.advance(f"{graph.name} ({seconds:.1f} s)")


def _buffer(value: Buffer | Tensor) -> Buffer:
    return value.driver_tensor if isinstance(value, Tensor) else value
