"""How a graph's Module is made for a dtype and a device, and traced.

The layers themselves (`Linear`, `RMSNorm`, `ModuleList`) are MAX's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from max import tree
from max.driver import Device
from max.dtype import DType
from max.experimental import compilation
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.nn._weight_utils import _RECORDED, _ExternalWeight, name_weights
from max.experimental.realization_context import GraphRealizationContext, subgraph_context
from max.experimental.sharding import TensorLayout
from max.experimental.tensor import (
    GraphValue,
    Tensor,
    current_realization_context,
    default_device,
    default_dtype,
)
from max.graph import DeviceRef, Graph, TensorType, TensorValue
from max.graph import Module as GraphModule
from max.nn.comm import Signals

from max_zimage.graphs.kernel_library import graph_with_kernels

ModuleT = TypeVar("ModuleT", bound=Module[..., Any])


def build(make: Callable[[], ModuleT], dtype: DType, device: DeviceRef) -> ModuleT:
    """Make a Module whose parameters are declared in `dtype` on `device` and hold no data.

    Args:
        make: Constructor without arguments, e.g. `lambda: DenoiseStep(spec)`.
        dtype: Dtype of every parameter.
        device: Where the graph runs.

    Returns:
        The Module, ready for `trace`.
    """
    with F.lazy(), default_dtype(dtype), default_device(device):
        return make()


def choose(
    predicate: Tensor,
    types: Sequence[TensorType],
    then: Callable[[], Sequence[TensorValue]],
    otherwise: Callable[[], Sequence[TensorValue]],
) -> list[Tensor]:
    """Run one of two branches.

    MAX 26.7 takes no call of a subgraph inside a branch, so what `as_subgraph` wraps is traced in place there.

    Args:
        predicate: bool [].
        types: Of what both branches give.
        then: Runs where the predicate is true.
        otherwise: Runs where it is not.

    Returns:
        What the branch gave.
    """
    context = subgraph_context()
    if not isinstance(context, GraphRealizationContext):
        return list(F.cond(predicate, types, then, otherwise))
    shared, context.subgraph_cache = context.subgraph_cache, None
    try:
        return list(F.cond(predicate, types, then, otherwise))
    finally:
        context.subgraph_cache = shared


def text_of(together: GraphModule) -> str:
    """All graphs of a module, as MAX writes them."""
    return str(together.mlir_module)


def accelerators_of(module: Module[..., Any]) -> tuple[Device, ...]:
    """The accelerators that a Module's parameters lie on, where these are several."""
    found = dict.fromkeys(device for _, parameter in module.parameters for device in parameter.mesh.devices)
    return tuple(found) if len(found) > 1 else ()


class _WeightInPlace(_ExternalWeight):
    """A parameter whose data lies on the graph's device already; MAX's own lie on the host and are copied there.

    Reference: max.experimental.nn._weight_utils, _ExternalWeight.graph_values.
    """

    @property
    def graph_values(self) -> tuple[GraphValue, ...]:
        """The external constant, once a graph; in a shared subgraph under the layer's own name for it."""
        context = current_realization_context(None)
        if self.name is None or not isinstance(context, GraphRealizationContext):
            return super().graph_values  # which says what is wrong
        recorded = _RECORDED.setdefault(context.graph, {})
        if self.name not in recorded:
            layout = TensorLayout(self.dtype, self.shape, self.device)
            name, inside = self.name.removeprefix(context.prefix), bool(context.prefix)
            recorded[self.name] = F.constant_external(name, layout, align=1, is_placeholder=inside).graph_values
        return recorded[self.name]


def trace(
    module: Module[..., Any],
    input_types: Iterable[TensorType],
    name: str,
    together: GraphModule,
    *,
    weights_in_place: bool = False,
) -> Graph:
    """Trace a Module into a graph beside others.

    `Module.trace` does the same into a module of its own, and MAX 26.7 has no public way to choose another.

    Args:
        module: From `build`.
        input_types: Types of `forward`'s arguments.
        name: The graph's name, unlike the others'.
        together: Takes the graph; what is in it is compiled as one.
        weights_in_place: Whether the parameters' data will be given on the graph's device, from where every graph reads
            it, and not on the host, from where every graph of an accelerator makes a copy.

    Returns:
        The graph. Parameters are external constants under the Module's names.
    """
    kind = _WeightInPlace if weights_in_place else _ExternalWeight
    declared = tree.map(kind.like, module, leaf=Tensor, shared=True)
    name_weights(declared)
    layouts, structure = compilation._declared_layouts(tuple(input_types), {})
    types = [local for layout in layouts for local in layout.local_types]
    numbers: list[tuple[DType, Device | DeviceRef]] = [(each.dtype, each.device) for each in types]
    numbers += [(parameter.dtype, parameter.mesh.devices[0]) for _, parameter in module.parameters]
    # What several accelerators send each other goes by buffers of their own, the last arguments.
    places = [DeviceRef.from_device(device) for device in accelerators_of(module)]
    signals = Signals(places).input_types() if places else []
    graph = graph_with_kernels(name, [*types, *signals], numbers, together)
    return compilation.StagedGraph(declared, graph, layouts, structure, subgraph_cache={}).graph
