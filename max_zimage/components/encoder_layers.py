"""Any hidden state of the text encoder, or a weighted sum of several: graphs that are compiled when one is asked for.

    stages: embedding | layer 1 | ... | last layer | final norm      up to the last one whose state is wanted

All layers are one compiled graph, bound to the weights of each layer that runs. Where graphs read weights in place they
are those that the component has already, and elsewhere copies. The last layer and the final norm, which nothing else
needs, are read from the files when they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.checkpoint.expand import text_encoder_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import loaded_names
from max_zimage.checkpoint.plan import LoadPlan, holds_final_norm, plan
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.compile.compiler import CompiledGraph, share_compiled, wait_for
from max_zimage.components.base import ZImageComponent
from max_zimage.device.devices import upload
from max_zimage.device.memory import check_device_memory
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.request.hidden_layer import HiddenLayer

_START, _NORM = "embed_tokens", "norm"
_LAYER, _CACHED = "text_encoder_layer", "text_encoder_cached_layer"
_GRAPHS = {_START: ("text_encoder_start", _START), _NORM: ("text_encoder_norm", _NORM)}
"""Place -> its graph, and what the graph calls the place; every other one is a layer."""

Kept = tuple[tuple[Buffer, Buffer], ...]
"""Keys and values of each layer, [prompts, cached_tokens, num_kv_heads, head_dim] on the device."""


class EncoderLayers:
    """The text encoder, a layer at a time.

    Args:
        component: Whose weights they are.
        spec: Its shape.
        transforms: Its weights go through.

    Attributes:
        nbytes: Memory of an accelerator that weights take which are there a second time, or for this alone.
    """

    def __init__(self, component: ZImageComponent, spec: TextEncoderSpec, transforms: Sequence[Transform]) -> None:
        self._component, self._spec, self._transforms = component, spec, transforms
        self._places = (_START, *(f"layers.{index}" for index in range(spec.num_layers)), _NORM)
        self._stages: dict[tuple[str, str], CompiledGraph] = {}  # by graph and place
        self.nbytes = 0

    def anew(self) -> EncoderLayers:
        """The same before any of it was asked for, without weights."""
        return EncoderLayers(self._component, self._spec, self._transforms)

    def __call__(self, tokens: Buffer, rope: Buffer, hidden_layer: HiddenLayer) -> Buffer:
        """Features of every position; those at and beyond a caption's length mean nothing.

        Args:
            tokens: int64 [prompts, caption_padded], on the device.
            rope: float32 [caption_padded, head_dim/2, 2], on the device.
            hidden_layer: Which states, and how much of each.

        Returns:
            [prompts, caption_padded, hidden_size] in the model's dtype.

        Raises:
            CheckpointError: If the files lack the final norm, and its state is asked for.
            NotEnoughMemoryError: If the weights do not fit on the device.
            RuntimeError: If MAX cannot compile a graph.
        """
        wanted = stage_weights(hidden_layer, self._spec.num_layers)
        start, *others = self._graphs(len(wanted))
        weights = upload(wanted, self._component.device)
        state, mixed, features = start(tokens, weights[0:1])
        for stage, graph in enumerate(others, 1):
            positions = [rope] if stage <= self._spec.num_layers else []
            state, mixed, features = graph(state, mixed, weights[stage : stage + 1], *positions)
        return features

    def read_on(self, tokens: Buffer, rope: Buffer, mask: Buffer, kept: Kept) -> tuple[Buffer, Kept]:
        """Read tokens behind others, through all layers and the final norm.

        Args:
            tokens: int64 [prompts, new_tokens], on the device.
            rope: float32 [new_tokens, head_dim/2, 2], on the device.
            mask: float32 [prompts, new_tokens, seen_tokens], on the device; zero where a token is seen.
            kept: Of what was read, from the call before; at the beginning of no tokens.

        Returns:
            Their last hidden states, [prompts, new_tokens, hidden_size] in the model's dtype; keys and values of all.

        Raises:
            CheckpointError, NotEnoughMemoryError, RuntimeError: As when called.
        """
        start, *layers, norm = self._graphs(len(self._places), _CACHED)
        none, whole = (upload(np.array([each], np.float32), self._component.device) for each in (0, 1))
        state, mixed, _ = start(tokens, none)
        found = []
        for graph, (keys, values) in zip(layers, kept, strict=True):
            state, keys, values = graph(state, rope, mask, keys, values)
            found.append((keys, values))
        return norm(state, mixed, whole)[2], tuple(found)

    def _graphs(self, count: int, layer: str = _LAYER) -> list[CompiledGraph]:
        """The first stages, bound to their weights; `layer` is the graph of the layers."""
        wanted = [*self._places[: max(count, 2)]]
        if self._component.device.is_host and holds_final_norm(self._component.plan()):
            wanted.append(_NORM)  # together they compile as fast as one of them
        graphs = [(_graph_of(place, layer), place) for place in dict.fromkeys(wanted)]
        missing = [each for each in graphs if each not in self._stages]
        if missing:
            more, nbytes = self._defined(missing)
            stages = {**self._stages, **more}
            layers = [graph for (name, _), graph in stages.items() if name == layer]
            wait_for([graph for graph in more.values() if graph not in layers[1:]])
            share_compiled(layers)
            self._stages, self.nbytes = stages, self.nbytes + nbytes
        return [self._stages[each] for each in graphs[:count]]

    def _defined(self, stages: Sequence[tuple[str, str]]) -> tuple[dict[tuple[str, str], CompiledGraph], int]:
        """Graphs of some places of the network, with their weights, and the memory that those take on an accelerator.

        Args:
            stages: Graphs, and what the engine's names of their parameters begin with.
        """
        places = [place for _, place in stages]
        component, kept = self._component, self._component.kept_weights
        checked = self._plan(final_norm=_NORM in places)
        names = {place: [name for name in loaded_names(checked) if _is_of(name, place)] for place in places}
        missing = {name for own in names.values() for name in own if name not in kept}
        nbytes = 0
        if not component.device.is_host:
            new = [each for each in checked.recipes if each.engine in missing]
            nbytes = sum(checked.nbytes_of(each, component.dtype_name) for each in new)
            there = component.nbytes_beside + component.plan().nbytes(component.dtype_name) + self.nbytes
            check_device_memory(there + nbytes, component.device)
        graphs = {}
        for graph, place in stages:
            own = names[place]
            loaded = component.placed(component.load_weights([name for name in own if name in missing], checked))
            inside = _GRAPHS[place][1] if place in _GRAPHS else "layer"
            weights = {name: kept[name] if name in kept else loaded[name] for name in own}
            inner = {f"{inside}{name.removeprefix(place)}": data for name, data in weights.items()}
            graphs[graph, place] = component.define(graph, inner)
        return graphs, nbytes

    def _plan(self, *, final_norm: bool) -> LoadPlan:
        """What is loaded of all layers."""
        names = text_encoder_names(self._spec, self._spec.num_layers, final_norm=final_norm)
        kept = self._component.plan()
        return replace(plan(names, open_source(kept.files), self._transforms), kept_as=kept.kept_as)


def _graph_of(place: str, layer: str) -> str:
    """The graph of a place, where layers have the one that is named."""
    return _GRAPHS[place][0] if place in _GRAPHS else layer


def _is_of(name: str, place: str) -> bool:
    return name.startswith(f"{place}.")


def stage_weights(hidden_layer: HiddenLayer, num_layers: int) -> npt.NDArray[np.float32]:
    """How much of each stage's state is wanted, all together 1.

    Args:
        hidden_layer: Layers, counted from the end, and their weights.
        num_layers: Layers of the text encoder.

    Returns:
        float32 [stages], no more of them than have to run: the embedding, the layers, and behind the last one the norm,
        whose state is layer -1. The last layer's own state is none of the model's, and has weight 0.
    """
    total, states = sum(weight for _, weight in hidden_layer), num_layers + 1
    wanted = np.zeros(states + 1, np.float64)
    for layer, weight in hidden_layer:
        wanted[states if layer == -1 else layer % states] = weight / total
    return wanted[: 1 + int(np.flatnonzero(wanted)[-1])].astype(np.float32)
