"""The one place where graphs are compiled, several at once, and the one way in which they are called.

A compiled graph takes and returns `max.driver.Buffer`s. A Buffer has no arithmetic, so nothing between two graphs can
run an eager operation, which `max serve` refuses in its worker.

Graphs that are waited for together are compiled as one module on a CPU, see `max_zimage.compile.modules`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from max.driver import Buffer, Device
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import TensorType
from max.profiler import Tracer

from max_zimage import progress
from max_zimage.compile import device_graphs
from max_zimage.compile.device_graphs import DeviceGraphs
from max_zimage.compile.modules import CompiledModule, GraphDefinition, module_of
from max_zimage.compile.observer import observed
from max_zimage.device.memory import give_back
from max_zimage.device.signals import NO_SIGNALS, signals_of
from max_zimage.host.processes import check_process

_lock = threading.Lock()


class CompiledGraph:
    """A graph that is compiled, or will be when it is waited for or called.

    Attributes:
        name: What progress and profiles call it.
        device_graphs: Its calls as device graphs; None where there are none, and until it is compiled.
        recall: Brings the weights of a graph that is called without; None for one that is never without.
    """

    def __init__(self, definition: GraphDefinition) -> None:
        self.name = definition.name
        self.device_graphs: DeviceGraphs | None = None
        self.recall: Callable[[], None] | None = None
        self._definition: GraphDefinition | None = definition
        self._device, self._replayed = definition.device, definition.replayed
        self._accelerators, self._signals = definition.accelerators, NO_SIGNALS
        self._on_host = [each.device.is_cpu() and not self._device.is_host for each in definition.input_types]
        self._module: CompiledModule | None = None
        self._model: Model | None = None

    @property
    def pending(self) -> GraphDefinition | None:
        """What is still to be compiled; None once it is."""
        return self._definition

    def expect(self, weights: Mapping[str, Buffer]) -> None:
        """Be compiled with other weights than it was defined with; no matter once it is compiled."""
        if self._definition is not None:
            given = {name: weights.get(name, data) for name, data in self._definition.weights.items()}
            self._definition = replace(self._definition, weights=given)

    @property
    def weight_bytes(self) -> int:
        """What its weights take in the model's dtype; 0 once it is compiled."""
        parameters = [] if self._definition is None else self._definition.module.parameters
        return sum(prod(map(int, each.shape)) * each.dtype.size_in_bytes for _, each in parameters)

    @property
    def module(self) -> CompiledModule | None:
        """What it was compiled in; None until it is."""
        return self._module

    def finish(self, model: Model | None, module: CompiledModule | None = None) -> None:
        """Take the compiled graph, or take it again, bound to other weights.

        Args:
            model: The graph; None where its weights come later.
            module: What it belongs to; on an accelerator that holds the weights whose addresses the graph has.
        """
        if self.device_graphs is not None:
            self.device_graphs.give_up()  # what was recorded reads the former weights
        self.device_graphs = None
        if model is not None and self._replayed and device_graphs.possible(self._device):
            self.device_graphs = DeviceGraphs(self.name, model, self._device, self._on_host)
        if model is not None and self._accelerators:
            self._signals = signals_of(self._accelerators)
        self._model, self._module, self._definition = model, module, None

    def release(self) -> None:
        """Give up what it is bound to, which on an accelerator has a copy of the weights, until `finish`."""
        if self.device_graphs is not None:
            self.device_graphs.give_up()
        self.device_graphs = self._model = None
        self._signals = NO_SIGNALS
        if self._definition is not None:
            self._definition = replace(self._definition, weights={}, is_unbound=True)

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
        if self._definition is not None:
            compile_together([self])
        if self._model is None and self.recall is not None:
            self.recall()
        assert self._model is not None
        buffers = [*map(_buffer, inputs)]
        with Tracer(self.name):
            return observed(self.name, buffers, lambda: self._run([*buffers, *self._signals.buffers]))

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
    weights: Mapping[str, Buffer] | None,
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
            not have are left aside, so that one component's graphs can share one mapping. None to bring them later, by
            `bind`.
        session: Where it will run.
        spec: What the Module was made from.
        device: Where it runs.
        replayed: Whether its calls may be replayed as device graphs.

    Returns:
        The graph.

    Raises:
        KeyError: If a parameter has no data.
    """
    needed = {} if weights is None else {parameter: weights[parameter] for parameter, _ in module.parameters}
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
            is_unbound=weights is None,
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
            module = module_of(definitions)
            for name, graph in pending.items():
                graph.finish(module.models.get(name), module)


def share_compiled(graphs: Sequence[CompiledGraph]) -> None:
    """Bind what one graph was compiled to for all of several, which differ in nothing but their weights.

    Args:
        graphs: Of one name, the first of them compiled.
    """
    with _lock:
        for graph in graphs:
            if graph.pending is not None:
                assert graphs[0].module is not None
                module = graphs[0].module.again(graph.pending)
                graph.finish(module.models[graph.name], module)


def bind(graphs: Sequence[CompiledGraph], weights: Mapping[str, Buffer]) -> None:
    """Give graphs other weights. Nothing is compiled: compiled graphs are initialized again.

    Args:
        graphs: All those that read one of the parameters, compiled or not.
        weights: Parameter name -> data, of the shapes and dtypes that the graphs were defined with. Parameters that are
            not named keep their data, where the graphs have no copies of their own; names that no graph has are left
            aside.

    Raises:
        KeyError: If the data of a parameter is neither given nor kept.
        ValueError: If a graph that is not named was compiled with them and reads a parameter that is.
    """
    with _lock:
        modules = {id(graph.module): graph.module for graph in graphs if graph.module is not None}
        bound = [(each, {graph.name: graph for graph in graphs if graph.module is each}) for each in modules.values()]
        for module, own in bound:
            module.check(own, weights)
        for module, own in bound:
            for graph in own.values():
                graph.release()
            module.bind(own, weights)
            for name, graph in own.items():
                graph.finish(module.models[name], module)
        for graph in graphs:
            graph.expect(weights)


def unbind(graphs: Sequence[CompiledGraph]) -> None:
    """Have graphs give up their weights until `bind` brings them again. What they were compiled to stays.

    Args:
        graphs: All those with weights that were compiled together with one of them.

    Raises:
        ValueError: If one is missing.
    """
    with _lock:
        modules = {id(graph.module): graph.module for graph in graphs if graph.module is not None}
        for module in modules.values():
            module.release([graph.name for graph in graphs if graph.module is module])
        for graph in graphs:
            graph.release()
    give_back()


def _on_host(graphs: Sequence[CompiledGraph]) -> bool:
    return all(graph.pending is None or graph.pending.device.is_host for graph in graphs)


def _buffer(value: Buffer | Tensor) -> Buffer:
    return value.driver_tensor if isinstance(value, Tensor) else value
