"""Definitions of graphs, and the modules that they are compiled into: found on disk, or else traced and compiled.

    definitions -> one module -> artifact on disk -> compiled module, which holds no weights -> models, bound to weights

MAX compiles one module at a time in a process, and within a module every kernel once, however many of its graphs use
it. A compiled module can be bound to weights again and again; that compiles nothing.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from max.driver import Buffer, Device
from max.engine import CompiledModel, InferenceSession, Model
from max.experimental.nn import Module
from max.graph import Module as GraphModule
from max.graph import TensorType

from max_zimage import progress
from max_zimage.compile.artifacts import artifact_key, artifact_name, find, save
from max_zimage.compile.device_weights import are_in_place, shared
from max_zimage.compile.inner_loops import loop_of
from max_zimage.compile.turns import turn
from max_zimage.graphs.cpu import InnerLoop, multiplying_by
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import accelerators_of, trace
from max_zimage.host.folders import no_room, room_to_compile
from max_zimage.host.temporary import make_sure

counts: Counter[str] = Counter(hits=0, misses=0)
"""How many modules this process has found on disk, and how many it has compiled."""


@dataclass(frozen=True, kw_only=True)
class GraphDefinition:
    """What a graph is made from.

    Attributes:
        name: What progress and profiles call it.
        module: From `graphs.layers.build`.
        input_types: Its `input_types()`.
        weights: Its parameters' data, in host memory or, where `weights_in_place` is true, on its device; nothing if it
            is unbound.
        session: Where it will run.
        spec: The frozen dataclass that the Module was made from, or None; see `artifact_key`.
        device: Where it runs.
        replayed: Whether its calls may be replayed as device graphs: not if what it launches depends on numbers that it
            computes, and to no avail if it launches little or runs once.
        is_unbound: Whether it is compiled before its weights are there; `CompiledModule.bind` brings them.
    """

    name: str
    module: Module[..., Any]
    input_types: tuple[TensorType, ...]
    weights: Mapping[str, Buffer]
    session: InferenceSession
    spec: object
    device: Device
    replayed: bool = False
    is_unbound: bool = False

    @cached_property
    def needs(self) -> frozenset[str]:
        """Its parameters."""
        return frozenset(name for name, _ in self.module.parameters) if self.is_unbound else frozenset(self.weights)

    @cached_property
    def key(self) -> str:
        """What the compiled graph depends on."""
        made_of = (self.name, self.spec, self.module, self.input_types, self.device)
        return artifact_key(*made_of, weights_in_place=self.weights_in_place, loop=self.loop)

    @cached_property
    def loop(self) -> InnerLoop:
        """In which way it multiplies bfloat16."""
        return loop_of(self.module, self.device)

    @cached_property
    def accelerators(self) -> tuple[Device, ...]:
        """Those that it runs on, where these are several."""
        return accelerators_of(self.module)

    @cached_property
    def weights_in_place(self) -> bool:
        """Whether the graph reads its weights where they lie on the device; not on several, where each has its own."""
        if self.is_unbound:
            return bool(self.needs) and shared(self.device) and not self.accelerators
        return are_in_place(self.weights)


class CompiledModule:
    """Graphs that were compiled together, and what they are bound to.

    Attributes:
        models: Graph name -> the graph as it can be run, bound to the weights that were given last; none while it is
            unbound.
    """

    def __init__(
        self, compiled: CompiledModel, definitions: Sequence[GraphDefinition], weights: Mapping[str, Buffer]
    ) -> None:
        self._session, self._compiled = definitions[0].session, compiled
        self._needs = {each.name: each.needs for each in definitions}
        self._on_host = definitions[0].device.is_host
        is_unbound = any(each.is_unbound and each.needs for each in definitions)
        self.models = {} if is_unbound else self._init(weights)
        self._weights = {} if is_unbound else self._kept(weights)

    def bind(self, names: Collection[str], weights: Mapping[str, Buffer]) -> None:
        """Bind some graphs to other weights; the others of the module keep theirs.

        Two sets of weights need not fit on the device: what the graphs are bound to is given up first.

        Args:
            names: The graphs.
            weights: Parameter name -> data; parameters that are not named keep what they are bound to.

        Raises:
            KeyError: If the data of a parameter is neither given nor kept.
            ValueError: If a graph that is not named reads a parameter that is.
        """
        given = self.check(names, weights)
        self.models = {}
        self.models = self._init({**self._weights, **given})
        self._weights |= self._kept(given)

    def release(self, names: Collection[str]) -> None:
        """Give up all weights until `bind` brings them again, which compiles nothing.

        Args:
            names: The graphs that will be bound again.

        Raises:
            ValueError: If another graph has weights, and would have none from here on.
        """
        others = sorted(name for name, needed in self._needs.items() if needed and name not in names)
        if others:
            raise ValueError(f"graph {others[0]} was compiled together with those that give up their weights")
        self.models, self._weights = {}, {}

    def check(self, names: Collection[str], weights: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """What `bind` would bind anew; arguments and errors are the same."""
        for name, needed in self._needs.items():
            other = sorted(needed & weights.keys())
            if other and name not in names:
                raise ValueError(
                    f"graph {name} reads {other[0]}, too; bind it together with {', '.join(sorted(names))}"
                )
        every = frozenset().union(*self._needs.values())
        given = {name: weights[name] for name in every if name in weights}
        missing = sorted(every - given.keys() - self._weights.keys())
        if missing:
            raise KeyError(f"parameter {missing[0]} has no data: graphs on an accelerator are given all of them")
        return given

    def again(self, definition: GraphDefinition) -> CompiledModule:
        """One of its graphs bound to other weights, beside this one.

        Args:
            definition: Like the one that the graph was compiled from, with the other weights.
        """
        return CompiledModule(self._compiled, [definition], {**self._weights, **definition.weights})

    def _kept(self, weights: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """What graphs read where it is, so that keeping it costs no memory.

        On an accelerator a graph may have a copy of its own; then host memory is given back.
        """
        return {name: data for name, data in weights.items() if self._on_host or not data.device.is_host}

    def _init(self, weights: Mapping[str, Buffer]) -> dict[str, Model]:
        return self._session.init_all(self._compiled, weights_registry=dict(weights))


def module_of(definitions: Sequence[GraphDefinition]) -> CompiledModule:
    """Load the module of some graphs from its artifact on disk, or else trace and compile it.

    Args:
        definitions: Graphs of one session, with different names.

    Raises:
        RuntimeError: If MAX cannot compile one, or if two call different data by the same name.
    """
    name = artifact_name([definition.name for definition in definitions], [each.key for each in definitions])
    weights = weights_of(definitions)
    if (module := _kept(name, definitions, weights)) is not None:
        return module
    with turn(name):
        # Another process may have compiled it meanwhile.
        if (module := _kept(name, definitions, weights)) is not None:
            return module
        counts["misses"] += 1
        compiled = _compiled(definitions)
        save(compiled, name)
    return CompiledModule(compiled, definitions, weights)


def _kept(name: str, definitions: Sequence[GraphDefinition], weights: Mapping[str, Buffer]) -> CompiledModule | None:
    if (path := find(name)) is None:
        return None
    try:
        module = CompiledModule(definitions[0].session.compile(path), definitions, weights)
    except Exception:  # what MAX does not take, in whatever way it puts it
        progress.note(f"MAX cannot use {path}; its graphs are compiled again")
        return None
    counts["hits"] += 1
    return module


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
    together, traced = GraphModule(), []
    for each in definitions:
        with multiplying_by(each.loop):
            in_place = each.weights_in_place
            traced.append(trace(each.module, each.input_types, each.name, together, weights_in_place=in_place))
    return compile_with_kernels(definitions[0].session, together, traced)


def weights_of(definitions: Sequence[GraphDefinition]) -> dict[str, Buffer]:
    """The weights of all graphs of a module, each once.

    Raises:
        RuntimeError: If two graphs call different data by the same name.
    """
    together: dict[str, Buffer] = {}
    for each in definitions:
        for name, data in each.weights.items():
            if together.setdefault(name, data) is not data:
                raise RuntimeError(f"graph {each.name} has other data for {name}; compile it in a group of its own")
    return together
