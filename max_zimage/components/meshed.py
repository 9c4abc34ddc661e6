"""The transformer on several devices, each of which holds all of its weights; what runs once a request has the first.

Reference: see `graphs.model.meshed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from max.driver import Buffer
from max.experimental.tensor import Tensor

from max_zimage.checkpoint.config import transformer_spec
from max_zimage.compile.compiler import CompiledGraph, unbind
from max_zimage.compile.graphs import define
from max_zimage.compile.registry import entry_of
from max_zimage.components.transformer import ZImageTransformerModel
from max_zimage.device.memory import check_device_memory
from max_zimage.graphs.dims import FirstBlock
from max_zimage.graphs.model.mesh_spec import MeshSpec
from max_zimage.graphs.step.inputs import PredictInputs

_FULL, _PADDED = "denoise_meshed", "denoise_meshed_padded"


class ZImageMeshedTransformer(ZImageTransformerModel):
    """Compiled transformer on several devices.

    Args:
        groups: In which branch rows are shared, see `graphs.model.mesh_spec.MeshSpec`.
        is_padded: Whether rows of unequal length are expected; see `step`.

    Attributes:
        model: One evaluation and update, `graphs.step.meshed.meshed_step`.
    """

    nbytes_beside_each: tuple[int, ...] = ()
    """What `nbytes_beside` is of the first device, of each; empty for nothing."""
    _first_block = "meshed_first_block"

    def __init__(self, *args: Any, groups: int, is_padded: bool, **kwargs: Any) -> None:
        self.groups, self.is_padded = groups, is_padded
        super().__init__(*args, **kwargs)

    def load_model(self) -> CompiledGraph:
        """Load the weights and define the three graphs."""
        self.spec = transformer_spec(self.config)
        weights = self.provide()
        self._first_block_graphs = {}
        self.model = self.graph(_PADDED if self.is_padded else _FULL, weights)
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
        """One evaluation and its update.

        There is one graph of it, with one copy of the weights on each device. The graph for rows without padding gives
        way, for good, to the one that takes any rows when these are first unequal, which then is compiled.
        """
        return self._step

    def _once_more(self, name: str) -> CompiledGraph:
        each = self.nbytes_beside_each or (0,) * len(self.devices)  # nothing, where a component stands alone
        others = zip(self.devices[1:], each[1:], strict=True)
        for other, beside in others if self.is_here and not self.device.is_host else ():
            check_device_memory(beside + self.again_bytes + 2 * self._nbytes, other)
        return super()._once_more(name)

    def _step(self, *inputs: Buffer | Tensor) -> list[Buffer]:
        given = PredictInputs(*inputs[: len(PredictInputs._fields)])
        # Padding behind a row is a sequence of its own, see `max_zimage.sampling.positions.sequence_offsets`.
        is_full = int(given.offsets.shape[0]) == int(given.valid_length.shape[0]) + 1
        if not (is_full or self.is_padded):
            self._take_padding()
        return self.model(*inputs)

    def _take_padding(self) -> None:
        """Go over to the graph for rows of unequal length; before it comes, the other gives its weights back.

        Raises:
            RuntimeError: If MAX cannot compile it; the component then is as before.
        """
        weights, before = self.provide(), self.model
        padded = self.graph(_PADDED, weights)
        if not self.device.is_host:  # on a CPU all graphs read the same copy
            unbind([before])
        try:
            self.compile(padded)
        except BaseException:
            self._bind(weights)
            raise
        if not self.device.is_host:
            self._graphs.remove(before)
        self.model, self.is_padded = padded, True

    def define(self, name: str, weights: Mapping[str, Buffer]) -> CompiledGraph:
        """See `ZImageComponent.define`; graphs of a step run on all devices."""
        entry = entry_of(name)
        if not entry.is_meshed:
            return super().define(name, weights)
        given = weights if self.is_here else None
        how: dict[str, Any] = {"session": self.session, "device": self.device, "attention": self.attention}
        return define(entry, self.mesh, self.dtype_name, given, **how)

    @property
    def shares_weights(self) -> bool:
        """No: each device has copies of its own, made from host memory, whatever is said of one device."""
        return False

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
