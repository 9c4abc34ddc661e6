"""The diffusion transformer: what runs once a request, once a schedule and once a step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from graphs.conditioning import CaptionConditioning, ModulationTable
from graphs.denoise import DenoiseStep
from graphs.layers import build
from graphs.transformer import TransformerSpec
from max_zimage.compiler import CompiledGraph
from max_zimage.components.base import ZImageComponent
from max_zimage.config import transformer_spec
from max_zimage.devices import upload
from max_zimage.positions import RopeSpec
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
        weights = self.load_weights()
        dtype, device = self.dtype, self.device_ref

        step = build(lambda: DenoiseStep(spec), dtype, device)
        step_weights = {f"transformer.{name}": data for name, data in weights.items()}
        self.model = self.compile("denoise", step, step.input_types(dtype, device), step_weights)

        captions = build(lambda: CaptionConditioning(spec), dtype, device)
        types = captions.input_types(dtype, device)
        self.conditioning = self.compile("conditioning", captions, types, weights)

        table = build(lambda: ModulationTable(spec), dtype, device)
        self.modulation = self.compile("modulation", table, table.input_types(device), weights)
        return self.model

    def names(self) -> Names:
        """The tensors that the component's files must hold."""
        return transformer_names(transformer_spec(self.config))

    @property
    def graphs(self) -> tuple[CompiledGraph, ...]:
        """All of the component's graphs."""
        return (self.model, self.conditioning, self.modulation)

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
