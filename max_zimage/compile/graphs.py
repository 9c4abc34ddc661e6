"""Graphs of the registry, defined with weights, or compiled once per process and device where they have none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from max.driver import Buffer, Device
from max.engine import InferenceSession
from max.graph import DeviceRef

from max_zimage.compile.compiler import CompiledGraph, compile_graph
from max_zimage.compile.entry import Entry
from max_zimage.compile.registry import GRAPHS
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.linear import Storage
from max_zimage.graphs.model.attention_backends import Backend as Backend


def define(
    entry: Entry,
    spec: object,
    model_dtype: ModelDtype,
    weights: Mapping[str, Buffer] | None,
    *,
    session: InferenceSession,
    device: Device,
    storage: Storage | None = None,
    attention: Backend | None = None,
) -> CompiledGraph:
    """Define a graph, to be compiled with others or by its first call.

    Args:
        entry: From `max_zimage.compile.registry.GRAPHS`.
        spec: Its component's.
        model_dtype: Of its weights and computation.
        weights: The component's, under its own names, or None; see `compile_graph`.
        session: Where it will run.
        device: Where it runs.
        storage: How its matrices are kept; None for the dtype.
        attention: How attention is computed; None for what dtype and device choose.
    """
    module, types = entry.module(spec, model_dtype, DeviceRef.from_device(device), storage, attention)
    return compile_graph(
        entry.name,
        module,
        types,
        Prefixed(weights, entry.prefix) if entry.prefix and weights is not None else weights,
        session,
        spec=entry.key_of(spec, attention),
        device=device,
        replayed=entry.is_replayed,
    )


@lru_cache(maxsize=8)
def shared_graph(name: str, spec: object, device: DeviceRef) -> CompiledGraph:
    """A graph without weights, the same one for all who ask.

    Args:
        name: Its name in the registry.
        spec: What it is made from, or None.
        device: Where it runs.
    """
    session = InferenceSession(devices=[device.to_device()])
    return define(GRAPHS[name], spec, "float32", {}, session=session, device=device.to_device())


class Prefixed(Mapping[str, Buffer]):
    """Weights under the names that a graph knows them by, which has something before a component's own."""

    def __init__(self, weights: Mapping[str, Buffer], prefix: str) -> None:
        self._weights, self._prefix = weights, prefix

    def __getitem__(self, name: str) -> Buffer:
        return self._weights[name.removeprefix(self._prefix)]

    def __iter__(self) -> Iterator[str]:
        return (f"{self._prefix}{name}" for name in self._weights)

    def __len__(self) -> int:
        return len(self._weights)
