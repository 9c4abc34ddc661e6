"""The transformer with weights that are larger than the memory: its main layers come one after another.

What stands around the main layers is there as long as the component is. Of the layers as many as have room stay, and
the others come in turn while those before them are computed, see `max_zimage.device.offload`. For an accelerator they
wait in the host's memory, page-locked, and a queue of their own copies them. For a CPU they wait in the files.

Reference: diffusers hooks/group_offloading.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import ClassVar, cast

from max.driver import Buffer, Usage

from max_zimage.checkpoint.blocks import LAYERS, is_modulated_norm, streams_of
from max_zimage.checkpoint.config import transformer_spec
from max_zimage.checkpoint.layout import apart, modulated_norms
from max_zimage.checkpoint.plan import LoadPlan
from max_zimage.compile.compiler import CompiledGraph
from max_zimage.compile.registry import entry_of
from max_zimage.compile.streamed_step import StreamedStep
from max_zimage.components.transformer import ZImageTransformerModel
from max_zimage.device.offload import Blocks, QueuedCopies, ReadCopies, Weights
from max_zimage.graphs.dims import FirstBlock
from max_zimage.graphs.step.streamed import StreamedBlock

_REFUSED = "cannot be computed with streamed blocks, which come one at a time and once an evaluation; "


class ZImageStreamedTransformer(ZImageTransformerModel):
    """Compiled transformer whose main layers are streamed.

    Attributes:
        model: A main layer, `graphs.step.streamed.StreamedBlock`.
        stay: How many main layers stay in memory; counts from the next time that the weights come.
        blocks: The main layers; None while the weights are away.
    """

    leaves_to_bind: ClassVar[bool] = True
    stay = 0
    blocks: Blocks | None = None

    def load_model(self) -> CompiledGraph:
        """Define the graphs; the weights come when one of them is called."""
        self.spec = transformer_spec(self.config)
        module, _ = entry_of("streamed_block").module(self.spec, self.dtype_name, self.device_ref, self.plan().kept_as)
        self._kind = cast(StreamedBlock, module)
        weights = self.provide()
        start, end = self.graph("streamed_start", weights), self.graph("streamed_end", weights)
        self.model = self.graph("streamed_block", {})
        self.conditioning, self.modulation = self.graph("conditioning", weights), self.graph("modulation", weights)
        self._step = StreamedStep(start, self.model, end, self._kind, self._in_order)
        return self.model

    @property
    def mixes_adapters(self) -> bool:
        """No: a layer's low-rank parts would have to come with it."""
        return False

    @property
    def step(self) -> Callable[..., list[Buffer]]:
        """One evaluation and its update, see `StreamedStep`."""
        return self._step

    @property
    def graphs(self) -> tuple[CompiledGraph, ...]:
        """All of the component's graphs."""
        return (*self._step.graphs, self.conditioning, self.modulation)

    def all_weights(self) -> dict[str, Buffer]:
        """The weights of what stands around the main layers, whose norms an accelerator has in the modulation."""
        names = [each.engine for each in self.plan().recipes]
        around = [name for name in names if not name.startswith(LAYERS)]
        if self.device.is_host:
            return self.load_weights(around)
        weights = self.load_weights([*around, *filter(is_modulated_norm, names)])
        kept = {name: data for name, data in weights.items() if not name.startswith(LAYERS)}
        return {**kept, **apart(kept), "norms": modulated_norms(weights, self.spec)}

    def leave(self) -> None:
        """Give the memory of all weights back."""
        if self.blocks is not None:
            self.blocks.drop()
        self.blocks = None
        super().leave()

    def first_block_graphs(self, block: FirstBlock) -> tuple[CompiledGraph, CompiledGraph]:
        """There are none.

        Raises:
            ValueError: In any case.
        """
        raise ValueError(f"first-block caching {_REFUSED}take step_cache taylorseer, or another placement")

    @property
    def nag(self) -> CompiledGraph:
        """There is none.

        Raises:
            ValueError: In any case.
        """
        raise ValueError(f"normalized attention guidance {_REFUSED}take another placement")

    def _bind(self, weights: Mapping[str, Buffer]) -> None:
        super()._bind(weights)
        self.blocks = self._made_blocks()

    def _take(self, now: LoadPlan, changed: Collection[str]) -> None:
        """Have the weights leave; they come back as they are wanted now."""
        self._plan = now
        self.leave()

    def _in_order(self) -> Iterable[Weights]:
        assert self.blocks is not None
        return self.blocks

    def _made_blocks(self) -> Blocks:
        count = self.spec.num_layers
        streamed = spread(count, min(self.stay, count))
        stay = {layer: self._there(layer) for layer in range(count) if layer not in streamed}
        if self.device.is_host:
            nbytes = streams_of(self.plan(), self.dtype_name, self.spec).block
            return Blocks(count, stay, ReadCopies(self._read, self.device, nbytes))
        return Blocks(count, stay, QueuedCopies({layer: self._waiting(layer) for layer in streamed}, self.device))

    def _read(self, layer: int) -> Weights:
        """The weights of a layer in host memory, in the order of the graph's arguments."""
        prefix = f"{LAYERS}{layer}."
        found = self.load_weights([each.engine for each in self.plan().recipes if each.engine.startswith(prefix)])
        named = found if self.device.is_host else {**found, **apart(found)}
        return [named[f"{prefix}{name}"] for name in self._kind.weight_types]

    def _there(self, layer: int) -> Weights:
        """The same on the device."""
        weights = self._read(layer)
        if self.device.is_host:
            return weights
        copied = [each.to(self.device) for each in weights]
        self.device.synchronize()  # what is copied must not be freed before
        return copied

    def _waiting(self, layer: int) -> Weights:
        """The same in host memory that the device copies from by itself."""
        waiting = []
        for each in self._read(layer):
            shape = [int(side) for side in each.shape]
            waiting.append(Buffer(each.dtype, shape, self.device, usage=Usage.STAGING))
            waiting[-1].inplace_copy_from(each)
            self.device.synchronize()
        return waiting


def spread(count: int, stay: int) -> frozenset[int]:
    """Which of so many blocks are streamed where some stay: as far from each other as can be, the first one of all."""
    streamed = count - stay
    return frozenset(number * count // streamed for number in range(streamed))
