"""The one place where graphs are compiled, several at once, and the one way in which they are called.

A compiled graph takes and returns `max.driver.Buffer`s. A Buffer has no arithmetic, so nothing between two graphs can
run an eager operation, which `max serve` refuses in its worker.

MAX compiles one module at a time in a process, and within a module every kernel once, however many of its graphs use
it. Graphs that are waited for together are therefore compiled as one module on a CPU.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from max.driver import Buffer, Device
from max.engine import CompiledModel, InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import Module as GraphModule
from max.graph import TensorType
from max.profiler import Tracer

from max_zimage import progress
from max_zimage.compile import device_graphs
from max_zimage.compile.artifacts import artifact_key, artifact_name, find, save
from max_zimage.compile.device_graphs import DeviceGraphs
from max_zimage.compile.device_weights import are_in_place
from max_zimage.compile.observer import observed
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import trace
from max_zimage.host.folders import no_room, room_to_compile
from max_zimage.host.processes import check_process
from max_zimage.host.temporary import make_sure

_lock = threading.Lock()
counts: Counter[str] = Counter(hits=0, misses=0)
"""How many modules this process has found on disk, and how many it has compiled."""


@dataclass(frozen=True, kw_only=True)
class GraphDefinition:
    """What a graph is made from.

    Attributes:
        name: What progress and profiles call it.
        module: From `graphs.layers.build`.
        input_types: Its `input_types()`.
        weights: Its parameters' data, in host memory or, where `weights_in_place` is true, on its device.
        session: Where it will run.
        spec: The frozen dataclass that the Module was made from, or None; see `artifact_key`.
        device: Where it runs.
        replayed: Whether its calls may be replayed as device graphs: not if what it launches depends on numbers that it
            computes, and to no avail if it launches little or runs once.
    """

    name: str
    module: Module[..., Any]
    input_types: tuple[TensorType, ...]
    weights: Mapping[str, Buffer]
    session: InferenceSession
    spec: object
    device: Device
    replayed: bool = False

    @cached_property
    def key(self) -> str:
        """What the compiled graph depends on."""
        in_place = self.weights_in_place
        return artifact_key(self.name, self.spec, self.module, self.input_types, self.device, weights_in_place=in_place)

    @cached_property
    def weights_in_place(self) -> bool:
        """Whether the graph reads its weights where they lie on the device."""
        return are_in_place(self.weights)


class CompiledGraph:
    """A graph that is compiled, or will be when it is waited for or called.

    Attributes:
        name: What progress and profiles call it.
        device_graphs: Its calls as device graphs; None where there are none, and until it is compiled.
    """

    def __init__(self, definition: GraphDefinition) -> None:
        self.name = definition.name
        self.device_graphs: DeviceGraphs | None = None
        self._definition: GraphDefinition | None = definition
        self._model: Model | None = None
        self._kept: Mapping[str, Buffer] = {}

    @property
    def pending(self) -> GraphDefinition | None:
        """What is still to be compiled; None once it is."""
        return self._definition

    @property
    def weight_bytes(self) -> int:
        """What its weights take in the model's dtype; 0 once it is compiled."""
        parameters = [] if self._definition is None else self._definition.module.parameters
        return sum(prod(map(int, each.shape)) * each.dtype.size_in_bytes for _, each in parameters)

    def finish(self, model: Model) -> None:
        """Take the compiled graph."""
        definition = self._definition
        if definition is not None and definition.replayed and device_graphs.possible(definition.device):
            device = definition.device
            on_host = [each.device.is_cpu() and not device.is_host for each in definition.input_types]
            self.device_graphs = DeviceGraphs(self.name, model, device, on_host)
        if definition is not None and definition.weights_in_place:
            self._kept = definition.weights  # the graph has but their addresses
        self._model, self._definition = model, None

    def __call__(self, *inputs: Buffer | Tensor) -> list[Buffer]:
        """Run the graph.

        Args:
            *inputs: One for each of the graph's input types, on its device.

        Returns:
            The outputs, on the graph's device; the work may still be going on there.

        Raises:
            RuntimeError: If MAX cannot compile it, or cannot be used in this process because it is a fork.
        """
        check_process()
        if self._model is None:
            compile_together([self])
        assert self._model is not None
        buffers = [*map(_buffer, inputs)]
        with Tracer(self.name):
            return observed(self.name, buffers, lambda: self._run(buffers))

    def _run(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Once; or again, if it fails while recordings of device graphs hold memory that it may have wanted."""
        try:
            return self._run_once(buffers)
        except Exception as error:
            if not device_graphs.give_up_all():
                raise
            progress.note(f"{self.name} is run again without device graphs, whose memory is given back: {error}")
        return self._run_once(buffers)

    def _run_once(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        assert self._model is not None
        if self.device_graphs is not None and device_graphs.wanted():
            return self.device_graphs(buffers)
        return list(self._model.execute(*buffers))


def compile_graph(
    name: str,
    module: Module[..., Any],
    input_types: Iterable[TensorType],
    weights: Mapping[str, Buffer],
    session: InferenceSession,
    *,
    spec: object,
    device: Device,
    replayed: bool = False,
) -> CompiledGraph:
    """Define a graph, to be compiled with others by `wait_for` or alone by its first call.

    Args:
        name: See `GraphDefinition`, also for what follows.
        module: The graph's Module.
        input_types: Types of its inputs.
        weights: Parameter name -> data, all of it in host memory or all of it on the device; names that the Module does
            not have are left aside, so that one component's graphs can share one mapping.
        session: Where it will run.
        spec: What the Module was made from.
        device: Where it runs.
        replayed: Whether its calls may be replayed as device graphs.

    Returns:
        The graph.

    Raises:
        KeyError: If a parameter has no data.
    """
    needed = {parameter: weights[parameter] for parameter, _ in module.parameters}
    return CompiledGraph(
        GraphDefinition(
            name=name,
            module=module,
            input_types=tuple(input_types),
            weights=needed,
            session=session,
            spec=spec,
            device=device,
            replayed=replayed,
        )
    )


def wait_for(graphs: Sequence[CompiledGraph]) -> None:
    """Compile graphs, showing progress: as one module for a CPU, one by one for an accelerator.

    There one graph at the real widths takes up to 3.4 GiB of host memory to compile; a module of all of them, with
    MAX's own products, had reached 21 GB when it was given up.

    Raises:
        RuntimeError: If MAX cannot compile one.
    """
    if not any(graph.pending for graph in graphs):
        return
    with progress.stage("Compiling graphs", len(graphs)) as shown:
        for group in [graphs] if _on_host(graphs) else [[graph] for graph in graphs]:
            compile_together(group)
            for graph in group:
                shown.advance(graph.name)


def compile_together(graphs: Sequence[CompiledGraph]) -> None:
    """Load the graphs of one session from their artifact on disk, or else trace and compile them as one module.

    Raises:
        RuntimeError: If MAX cannot compile one or cannot be used in this process because it is a fork, or if two have
            the same name or call different data by the same name.
    """
    check_process()
    with _lock:
        definitions = [graph.pending for graph in graphs if graph.pending]
        pending = {graph.name: graph for graph in graphs if graph.pending}
        if len(pending) < len(definitions):
            raise RuntimeError(f"two graphs of one module have the same name: {[each.name for each in definitions]}")
        if definitions:
            for name, model in _models(definitions).items():
                pending[name].finish(model)


def _models(definitions: Sequence[GraphDefinition]) -> dict[str, Model]:
    name = artifact_name([definition.name for definition in definitions], [each.key for each in definitions])
    session, weights = definitions[0].session, _weights(definitions)
    if (path := find(name)) is not None:
        try:
            models = _init(session, session.compile(path), weights)
            counts["hits"] += 1
            return models
        except Exception:  # what MAX does not take, in whatever way it puts it
            progress.note(f"MAX cannot use {path}; its graphs are compiled again")
    counts["misses"] += 1
    compiled = _compiled(definitions)
    save(compiled, name)
    return _init(session, compiled, weights)


def _compiled(definitions: Sequence[GraphDefinition]) -> CompiledModel:
    """Trace and compile; once more without MAX's own cache if it is for want of room there that it failed."""
    with contextlib.suppress(OSError):  # then another folder is looked for
        make_sure()
    try:
        with room_to_compile():
            return _compiled_now(definitions)
    except Exception as error:
        if not no_room(error):
            raise
    with room_to_compile(max_cache=False):
        return _compiled_now(definitions)


def _compiled_now(definitions: Sequence[GraphDefinition]) -> CompiledModel:
    together = GraphModule()
    traced = [
        trace(each.module, each.input_types, each.name, together, weights_in_place=each.weights_in_place)
        for each in definitions
    ]
    return compile_with_kernels(definitions[0].session, together, traced)


def _init(session: InferenceSession, compiled: CompiledModel, weights: Mapping[str, Buffer]) -> dict[str, Model]:
    return session.init_all(compiled, weights_registry=dict(weights))


def _weights(definitions: Sequence[GraphDefinition]) -> dict[str, Buffer]:
    together: dict[str, Buffer] = {}
    for each in definitions:
        for name, data in each.weights.items():
            if together.setdefault(name, data) is not data:
                raise RuntimeError(f"graph {each.name} has other data for {name}; compile it in a group of its own")
    return together


def _on_host(graphs: Sequence[CompiledGraph]) -> bool:
    return all(graph.pending is None or graph.pending.device.is_host for graph in graphs)


def _buffer(value: Buffer | Tensor) -> Buffer:
    return value.driver_tensor if isinstance(value, Tensor) else value
