"""The transformer on several devices, each of which holds all of its weights; what runs once a request has the first.

Reference: see `graphs.model.meshed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from max.driver import Buffer
from max.experimental.tensor import Tensor

from max_zimage.checkpoint.config import transformer_spec
from max_zimage.compile.compiler import CompiledGraph
from max_zimage.compile.graphs import define
from max_zimage.compile.registry import entry_of
from max_zimage.components.transformer import ZImageTransformerModel
from max_zimage.device.memory import check_device_memory
from max_zimage.graphs.dims import FirstBlock
from max_zimage.graphs.model.mesh_spec import MeshSpec
from max_zimage.graphs.step.inputs import PredictInputs


class ZImageMeshedTransformer(ZImageTransformerModel):
    """Compiled transformer on several devices.

    Args:
        groups: In which branch rows are shared, see `graphs.model.mesh_spec.MeshSpec`.

    Attributes:
        model: One evaluation and update for rows without padding, `graphs.step.meshed.meshed_step`.
    """

    _first_block = "meshed_first_block"

    def __init__(self, *args: Any, groups: int, **kwargs: Any) -> None:
        self.groups = groups
        super().__init__(*args, **kwargs)

    def load_model(self) -> CompiledGraph:
        """Load the weights and define the three graphs."""
        self.spec = transformer_spec(self.config)
        weights = self.provide()
        self._first_block_graphs = {}
        self.model = self.graph("denoise_meshed", weights)
        self._nbytes = self.model.weight_bytes
        self.conditioning = self.graph("conditioning", weights)
        self.modulation = self.graph("modulation", weights)
        return self.model

    @property
    def mesh(self) -> MeshSpec:
        """The devices."""
        places = range(len(self.devices)) if self.device.is_host else (device.id for device in self.devices)
        return MeshSpec(transformer=self.spec, places=tuple(places), groups=self.groups)

    @property
    def step(self) -> Callable[..., list[Buffer]]:
        """One evaluation and its update; of rows of unequal length another graph, compiled when it is first needed."""
        return self._step

    @cached_property
    def padded(self) -> CompiledGraph:
        """The step for rows of unequal length. Holds the transformer once more, on each device; see `_once_more`.

        Raises:
            NotEnoughMemoryError: If that does not fit.
        """
        return self._once_more("denoise_meshed_padded")

    def _once_more(self, name: str) -> CompiledGraph:
        for other in self.devices[1:] if self.is_here and not self.device.is_host else ():
            check_device_memory(self.again_bytes + 2 * self._nbytes, other)
        return super()._once_more(name)

    def _step(self, *inputs: Buffer | Tensor) -> list[Buffer]:
        given = PredictInputs(*inputs[: len(PredictInputs._fields)])
        # Padding behind a row is a sequence of its own, see `max_zimage.sampling.positions.sequence_offsets`.
        is_full = int(given.offsets.shape[0]) == int(given.valid_length.shape[0]) + 1
        return (self.model if is_full else self.padded)(*inputs)

    def define(self, name: str, weights: Mapping[str, Buffer]) -> CompiledGraph:
        """See `ZImageComponent.define`; graphs of a step run on all devices."""
        entry = entry_of(name)
        if not entry.is_meshed:
            return super().define(name, weights)
        given = weights if self.is_here else None
        how: dict[str, Any] = {"session": self.session, "device": self.device, "attention": self.attention}
        return define(entry, self.mesh, self.dtype_name, given, **how)

    def placed(self, weights: dict[str, Buffer]) -> Mapping[str, Buffer]:
        """In host memory: each device has copies of its own."""
        return weights

    @property
    def nag(self) -> CompiledGraph:
        """There is none.

        Raises:
            ValueError: In any case.
        """
        raise ValueError(
            "normalized attention guidance cannot be computed on several devices; take one, or another guidance"
        )

    def first_block_graphs(self, block: FirstBlock) -> tuple[CompiledGraph, CompiledGraph]:
        """See `ZImageTransformerModel.first_block_graphs`; the devices decide together.

        Raises:
            ValueError: If the devices share branch rows: rows come one at a time there.
        """
        if self.groups > 1:
            raise ValueError("first-block caching takes one branch at a time; take taylorseer, or share tokens alone")
        return super().first_block_graphs(block)
