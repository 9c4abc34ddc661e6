"""The diffusion transformer: what runs once a request, once a schedule and once a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.experimental.tensor import default_device, default_dtype

from max_zimage.checkpoint.config import transformer_spec
from max_zimage.checkpoint.expand import ParameterTable, transformer_names
from max_zimage.checkpoint.layout import apart, modulated_norms
from max_zimage.compile.compiler import CompiledGraph, wait_for
from max_zimage.compile.device_weights import OnDevice
from max_zimage.components.base import ZImageComponent
from max_zimage.device.devices import upload
from max_zimage.device.memory import check_device_memory
from max_zimage.graphs.dims import FirstBlock
from max_zimage.graphs.kernel_library import uses_cpu_kernels
from max_zimage.graphs.model.blocks import attends_ragged
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.ops import packable
from max_zimage.sampling.positions import RopeSpec


class ZImageTransformerModel(ZImageComponent):
    """Compiled transformer.

    Attributes:
        model: One evaluation and update, `graphs.step.compose.denoise_step`.
        conditioning: Captions to tokens, `graphs.model.conditioning.CaptionConditioning`.
        modulation: Timesteps to a table, `graphs.model.conditioning.ModulationTable`.
        spec: Its shape.
    """

    model: CompiledGraph
    spec: TransformerSpec
    _first_block = "first_block"
    """Before the block, the name of the graph of a step with first-block caching."""
    _copies = 0
    """Of weights, beside the first one, where graphs do not share them."""
    _nbytes = 0
    """What another graph of a step takes again where they do not."""

    def load_model(self) -> CompiledGraph:
        """Load the weights and define the three graphs."""
        self.spec = transformer_spec(self.config)
        weights = self.provide()
        self._first_block_graphs: dict[FirstBlock, tuple[CompiledGraph, CompiledGraph]] = {}
        self.model = self.graph("denoise", weights)
        self._nbytes = self.model.weight_bytes
        self.conditioning = self.graph("conditioning", weights)
        self.modulation = self.graph("modulation", weights)
        if isinstance(weights, OnDevice):
            weights.forget_others()
        return self.model

    def names(self) -> ParameterTable:
        """The tensors that the component's files must hold."""
        return transformer_names(transformer_spec(self.config))

    def all_weights(self) -> dict[str, Buffer]:
        """The weights under all names that graphs on this device know them by; see `graphs.model.blocks.FusedBlock`."""
        weights = self.load_weights()
        if self.device.is_host:
            return weights
        norms = modulated_norms(weights, self.spec)
        with default_dtype(self.dtype), default_device(self.device_ref):
            parts = apart(weights, instead=attends_ragged(self.spec))
        return {**weights, **parts, "norms": norms}

    @property
    def step(self) -> Callable[..., list[Buffer]]:
        """One evaluation and its update, with the arguments and results of `graphs.step.compose.denoise_step`."""
        return self.model

    @property
    def graphs(self) -> tuple[CompiledGraph, ...]:
        """All of the component's graphs."""
        return (self.model, self.conditioning, self.modulation)

    def first_block_graphs(self, block: FirstBlock) -> tuple[CompiledGraph, CompiledGraph]:
        """A step with first-block caching, and guidance behind it; compiled when they are first asked for.

        Args:
            block: The block that decides.

        Returns:
            `graphs.step.first_block.FirstBlockStep` and `graphs.step.compose.UpdatePicture`. The first holds the
            transformer once more; see `_once_more`.

        Raises:
            NotEnoughMemoryError: If that does not fit.
        """
        if block not in self._first_block_graphs:
            # One after the other: while the weights are away, a graph that has none cannot share a module with one
            # that waits for them.
            self._first_block_graphs[block] = (
                self._once_more(f"{self._first_block}_{block}"),
                _compiled(self.graph("guidance")),
            )
        return self._first_block_graphs[block]

    @cached_property
    def nag(self) -> CompiledGraph:
        """A step with normalized attention guidance, `graphs.step.paired`; compiled when it is first asked for.

        Holds the transformer once more; see `_once_more`.

        Raises:
            NotEnoughMemoryError: If that does not fit.
        """
        return self._once_more("denoise_nag")

    @cached_property
    def adapted(self) -> CompiledGraph:
        """A step with adapters by picture, `graphs.step.adapted`; compiled when it is first asked for.

        Raises:
            RuntimeError: If MAX cannot compile it.
        """
        return self._once_more("denoise_adapted")

    @property
    def mixes_adapters(self) -> bool:
        """Whether pictures of a batch can have adapters of their own: on a CPU, with packed weights as they are."""
        is_packed = all(packable(inputs, self.dtype) for inputs in (self.spec.dim, self.spec.ffn_dim))
        return uses_cpu_kernels(self.dtype, self.device) and is_packed and self.plan().kept_as is None

    def _once_more(self, name: str) -> CompiledGraph:
        """Another graph with the transformer in it, compiled: on an accelerator its weights take their memory again.

        Not where graphs share them; see `again_bytes`.

        Raises:
            NotEnoughMemoryError: If that does not fit.
            RuntimeError: If MAX cannot compile it; the component then is as if it had not been asked for.
        """
        if self._weights is None and self.is_here:
            check_device_memory(self.nbytes_beside + self.again_bytes + 2 * self._nbytes, self.device)
        graph = self.graph(name, self.provide())
        self.compile(graph)
        self._copies += 1
        return graph

    @property
    def again_bytes(self) -> int:
        """Memory of an accelerator for weights which are there already: of step caches, and of guided attention."""
        return 0 if self._weights is not None or self.device.is_host else self._copies * self._nbytes

    @cached_property
    def taylor_graphs(self) -> tuple[CompiledGraph, CompiledGraph]:
        """`TaylorUpdate` and `extrapolated_step` of `graphs.step`; compiled when they are first asked for."""
        graphs = self.graph("taylor_update"), self.graph("taylor_step")
        wait_for(graphs)
        return graphs

    @cached_property
    def guided_update(self) -> CompiledGraph:
        """`graphs.step.guided.GuidedUpdate`; compiled when it is first asked for."""
        return _compiled(self.graph("guided_update"))

    @cached_property
    def keep_unmasked(self) -> CompiledGraph:
        """`graphs.step.masked.KeepUnmasked`; compiled when it is first asked for."""
        return _compiled(self.graph("keep_unmasked"))

    @cached_property
    def positions(self) -> CompiledGraph:
        """`graphs.step.positions.Positions`; compiled when it is first asked for."""
        return _compiled(self.graph("positions"))

    @property
    def rope_spec(self) -> RopeSpec:
        """Shape of the rotary tables."""
        spec = self.spec
        return RopeSpec(axes_dims=spec.axes_dims, axes_lens=spec.axes_lens, theta=spec.rope_theta)

    def modulation_table(
        self, timesteps: npt.NDArray[np.float32], kept: npt.NDArray[np.float32] | None = None
    ) -> tuple[Buffer, Buffer]:
        """Everything that the timesteps decide.

        Args:
            timesteps: float32 [evaluations], 1 - sigma.
            kept: float32 [variants, num_blocks], see `graphs.model.conditioning.ModulationTable`; None for one variant
                in which all blocks take part.

        Returns:
            float32 [evaluations, num_blocks, 4, variants, dim] and float32 [evaluations, dim].
        """
        kept = np.ones((1, self.spec.num_blocks), np.float32) if kept is None else kept
        table, final_scale = self.modulation(upload(timesteps, self.device), upload(kept, self.device))
        return table, final_scale


def _compiled(graph: CompiledGraph) -> CompiledGraph:
    wait_for([graph])
    return graph
