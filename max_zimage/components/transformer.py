"""The diffusion transformer: what runs once a request, once a schedule and once a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType

from max_zimage.checkpoint.config import transformer_spec
from max_zimage.checkpoint.expand import Names, transformer_names
from max_zimage.checkpoint.layout import apart, modulated_norms
from max_zimage.compile.compiler import CompiledGraph, wait_for
from max_zimage.compile.device_weights import OnDevice, shared
from max_zimage.components.base import ZImageComponent
from max_zimage.device.devices import upload
from max_zimage.device.memory import check_device_memory
from max_zimage.graphs.dims import FirstBlock
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.conditioning import CaptionConditioning, ModulationTable
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.denoise import DenoiseStep
from max_zimage.graphs.step.extrapolate import TaylorStep, TaylorUpdate
from max_zimage.graphs.step.first_block import FirstBlockStep, PictureGuidance
from max_zimage.sampling.positions import RopeSpec

_STEP = "transformer."


class ZImageTransformerModel(ZImageComponent):
    """Compiled transformer.

    Attributes:
        model: One denoising step, `graphs.step.denoise.DenoiseStep`.
        conditioning: Captions to tokens, `graphs.model.conditioning.CaptionConditioning`.
        modulation: Timesteps to a table, `graphs.model.conditioning.ModulationTable`.
        spec: Its shape.
        nbytes_beside: Memory of the other components' weights on the same device.
    """

    model: CompiledGraph
    spec: TransformerSpec
    nbytes_beside = 0

    def load_model(self) -> CompiledGraph:
        """Load the weights and define the three graphs."""
        self.spec = spec = transformer_spec(self.config)
        weights = self.placed(self._all_weights())
        dtype, device = self.dtype, self.device_ref
        self._first_block_graphs: dict[FirstBlock, tuple[CompiledGraph, CompiledGraph]] = {}
        # Where the graphs have copies of their own, host memory is given back.
        self._weights = weights if self.device.is_host or shared(self.device) else None

        step = build(lambda: DenoiseStep(spec), dtype, device)
        # What another graph of a step takes again where weights are not shared.
        self._nbytes = sum(prod(map(int, each.shape)) * each.dtype.size_in_bytes for _, each in step.parameters)
        types = step.input_types(dtype, device)
        self.model = self.compile("denoise", step, types, _OfStep(weights), replayed=True)

        captions = build(lambda: CaptionConditioning(spec), dtype, device)
        types = captions.input_types(dtype, device)
        self.conditioning = self.compile("conditioning", captions, types, weights)

        table = build(lambda: ModulationTable(spec), dtype, device)
        self.modulation = self.compile("modulation", table, table.input_types(device), weights)
        if isinstance(weights, OnDevice):
            weights.forget_others()
        return self.model

    def names(self) -> Names:
        """The tensors that the component's files must hold."""
        return transformer_names(transformer_spec(self.config))

    def _all_weights(self) -> dict[str, Buffer]:
        """The weights under all names that graphs on this device know them by; see `graphs.model.blocks.FusedBlock`."""
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
            `graphs.step.first_block.FirstBlockStep` and `PictureGuidance`. The first holds the transformer once more:
            on an accelerator its weights take their memory again, unless they are shared; see `again_bytes`.

        Raises:
            NotEnoughMemoryError: If that does not fit.
        """
        if block not in self._first_block_graphs:
            spec, dtype, device = self.spec, self.dtype, self.device_ref
            if self._weights is None:
                check_device_memory(self.nbytes_beside + self.again_bytes + 2 * self._nbytes, self.device)
            weights = self.placed(self._all_weights()) if self._weights is None else self._weights
            step = build(lambda: FirstBlockStep(spec, block), dtype, device)
            guidance = build(lambda: PictureGuidance(spec), dtype, device)
            name = f"first_block_{block}"
            self._first_block_graphs[block] = (
                self.compile(name, step, step.input_types(dtype, device), _OfStep(weights)),
                self.compile("guidance", guidance, guidance.input_types(device), {}),
            )
            wait_for(self._first_block_graphs[block])
        return self._first_block_graphs[block]

    @property
    def again_bytes(self) -> int:
        """Memory of an accelerator that first-block caching takes for weights which are there already."""
        return 0 if self._weights is not None else len(self._first_block_graphs) * self._nbytes

    @cached_property
    def taylor_graphs(self) -> tuple[CompiledGraph, CompiledGraph]:
        """`graphs.step.extrapolate.TaylorUpdate` and `TaylorStep`; compiled when they are first asked for."""
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
            float32 [steps, num_blocks, 4, dim] and float32 [steps, dim]; see
            `graphs.model.conditioning.ModulationTable`.
        """
        table, final_scale = self.modulation(upload(timesteps, self.device))
        return table, final_scale


class _OfStep(Mapping[str, Buffer]):
    """The transformer's weights under the names that a graph of a whole step knows them by."""

    def __init__(self, weights: Mapping[str, Buffer]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Buffer:
        return self._weights[name.removeprefix(_STEP)]

    def __iter__(self) -> Iterator[str]:
        return (f"{_STEP}{name}" for name in self._weights)

    def __len__(self) -> int:
        return len(self._weights)
