"""The diffusion transformer: what runs once a request, once a schedule and once a step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType

from max_zimage.compiler import CompiledGraph, wait_for
from max_zimage.components.base import ZImageComponent
from max_zimage.config import transformer_spec
from max_zimage.devices import upload
from max_zimage.graphs.conditioning import CaptionConditioning, ModulationTable
from max_zimage.graphs.denoise import DenoiseStep
from max_zimage.graphs.dims import FirstBlock
from max_zimage.graphs.first_block_cache import FirstBlockStep, PictureGuidance
from max_zimage.graphs.layers import build
from max_zimage.graphs.taylorseer import TaylorStep, TaylorUpdate
from max_zimage.graphs.transformer import TransformerSpec
from max_zimage.memory import check_device_memory
from max_zimage.positions import RopeSpec
from max_zimage.weight_order import apart, modulated_norms
from max_zimage.weight_places import Names, transformer_names


class ZImageTransformerModel(ZImageComponent):
    """Compiled transformer.

    Attributes:
        model: One denoising step, `graphs.denoise.DenoiseStep`.
        conditioning: Captions to tokens, `graphs.conditioning.CaptionConditioning`.
        modulation: Timesteps to a table, `graphs.conditioning.ModulationTable`.
        spec: Its shape.
    """

    model: CompiledGraph
    spec: TransformerSpec

    def load_model(self) -> CompiledGraph:
        """Load the weights and define the three graphs."""
        self.spec = spec = transformer_spec(self.config)
        weights = self._all_weights()
        dtype, device = self.dtype, self.device_ref
        self._first_block_graphs: dict[FirstBlock, tuple[CompiledGraph, CompiledGraph]] = {}
        # On an accelerator the graphs have copies of their own there, and host memory is given back.
        self._weights = weights if self.device.is_host else None

        step = build(lambda: DenoiseStep(spec), dtype, device)
        types = step.input_types(dtype, device)
        self.model = self.compile("denoise", step, types, _of_step(weights), replayed=True)

        captions = build(lambda: CaptionConditioning(spec), dtype, device)
        types = captions.input_types(dtype, device)
        self.conditioning = self.compile("conditioning", captions, types, weights)

        table = build(lambda: ModulationTable(spec), dtype, device)
        self.modulation = self.compile("modulation", table, table.input_types(device), weights)
        return self.model

    def names(self) -> Names:
        """The tensors that the component's files must hold."""
        return transformer_names(transformer_spec(self.config))

    def _all_weights(self) -> dict[str, Buffer]:
        """The weights under all names that graphs on this device know them by; see `graphs.blocks.FusedBlock`."""
        weights = self.load_weights()
        if self.device.is_host:
            return weights
        return {**weights, **apart(weights), "norms": modulated_norms(weights, self.spec)}

    @property
    def graphs(self) -> tuple[CompiledGraph, ...]:
        """All of the component's graphs."""
        return (self.model, self.conditioning, self.modulation)

    def first_block_graphs(self, block: FirstBlock) -> tuple[CompiledGraph, CompiledGraph]:
        """A step with first-block caching, and guidance behind it; compiled when they are first asked for.

        Args:
            block: The block that decides.

        Returns:
            `graphs.first_block_cache.FirstBlockStep` and `PictureGuidance`. The first holds the transformer once more:
            on an accelerator its weights take their memory a second time.
        """
        if block not in self._first_block_graphs:
            spec, dtype, device = self.spec, self.dtype, self.device_ref
            weights = self._all_weights() if self._weights is None else self._weights
            if not self.device.is_host:
                needed = sum(data.num_elements * data.dtype.size_in_bytes for data in weights.values())
                check_device_memory(2 * needed, self.device)
            step = build(lambda: FirstBlockStep(spec, block), dtype, device)
            guidance = build(lambda: PictureGuidance(spec), dtype, device)
            name = f"first_block_{block}"
            self._first_block_graphs[block] = (
                self.compile(name, step, step.input_types(dtype, device), _of_step(weights)),
                self.compile("guidance", guidance, guidance.input_types(device), {}),
            )
            wait_for(self._first_block_graphs[block])
        return self._first_block_graphs[block]

    @cached_property
    def taylor_graphs(self) -> tuple[CompiledGraph, CompiledGraph]:
        """`graphs.taylorseer.TaylorUpdate` and `TaylorStep`; compiled when they are first asked for."""
        spec, device = self.spec, self.device_ref
        update = build(lambda: TaylorUpdate(spec), DType.float32, device)
        step = build(lambda: TaylorStep(spec), DType.float32, device)
        graphs = (
            self.compile("taylor_update", update, update.input_types(device), {}),
            self.compile("taylor_step", step, step.input_types(device), {}),
        )
        wait_for(graphs)
        return graphs

    @property
    def rope_spec(self) -> RopeSpec:
        """Shape of the rotary tables."""
        spec = self.spec
        return RopeSpec(axes_dims=spec.axes_dims, axes_lens=spec.axes_lens, theta=spec.rope_theta)

    def modulation_table(self, timesteps: npt.NDArray[np.float32]) -> tuple[Buffer, Buffer]:
        """Everything that the timesteps decide.

        Args:
            timesteps: float32 [steps], 1 - sigma.

        Returns:
            float32 [steps, num_blocks, 4, dim] and float32 [steps, dim]; see `graphs.conditioning.ModulationTable`.
        """
        table, final_scale = self.modulation(upload(timesteps, self.device))
        return table, final_scale


def _of_step(weights: Mapping[str, Buffer]) -> dict[str, Buffer]:
    """The names under which a graph of a whole step knows the transformer's weights."""
    return {f"transformer.{name}": data for name, data in weights.items()}
