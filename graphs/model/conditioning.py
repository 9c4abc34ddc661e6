"""What the denoising steps share: caption tokens, once a request, and the modulation table, once a schedule.

    features -> norm -> linear -> (pad token behind the caption's end) -> [context block] x refiner layers -> tokens
    timesteps -> sinusoid -> MLP -> one matrix for all blocks -> modulation [steps, blocks, 4, variants, dim], scale

Neither depends on the latents, so nothing here is repeated in the loop.

Reference: diffusers models/transformers/transformer_z_image.py, TimestepEmbedder, cap_embedder, context_refiner,
adaLN_modulation.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.compilation import as_subgraph
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.nn.sequential import ModuleList
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import CAPTION_PADDED, ITEMS, OFFSETS, PROMPTS, STEPS, VARIANTS
from max_zimage.graphs.linear import linear
from max_zimage.graphs.model.blocks import ContextBlock, attends_ragged, fuses
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.overflow import unless_too_large

_MAX_PERIOD = 10000.0
_SINUSOIDS = 256  # cosines and sines together, whatever the model's width
_TIMESTEP_HIDDEN = 1024


class CaptionConditioning(Module[..., Tensor]):
    """Text features to refined caption tokens, laid out for the transformer's batch."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec, self.ragged = spec, attends_ragged(spec)
        self.cap_embedder = CaptionEmbedder(spec)
        self.cap_pad_token = Tensor.zeros([1, spec.dim])
        self.context_refiner = ModuleList(ContextBlock(spec) for _ in range(spec.num_refiner_layers))

    def forward(
        self,
        features: Tensor,
        length: Tensor,
        padded_length: Tensor,
        offsets: Tensor,
        rope: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """Caption tokens of every item.

        Args:
            features: [prompts, caption_padded, caption_dim] in the model's dtype; rows at and beyond `length` hold
                anything.
            length: uint32 [prompts], tokens of each caption.
            padded_length: uint32 [prompts], the same rounded up to a multiple of 32: what is attended.
            offsets: uint32 [sequences + 1], that as sequences, see `graphs.model.transformer.Transformer.forward`.
            rope: float32 [prompts, caption_padded, head_dim/2, 2].
            rows: int32 [items], which prompt each item of the transformer's batch shows.

        Returns:
            [items, caption_padded, dim] in the model's dtype.
        """
        tokens = self.cap_embedder(features)
        prompts, padded, dim = tokens.shape
        position = F.range(0, padded, 1, out_dim=padded, dtype=DType.int32, device=tokens.device)
        exists = F.unsqueeze(position, 0) < F.unsqueeze(length.cast(DType.int32), 1)
        exists = F.broadcast_to(F.unsqueeze(exists, 2), [prompts, padded, dim])
        tokens = F.where(exists, tokens, F.broadcast_to(F.unsqueeze(self.cap_pad_token, 0), [prompts, padded, dim]))
        extent = offsets if self.ragged else padded_length
        for block in self.context_refiner:
            tokens = as_subgraph(block, name="context_block")(tokens, rope, extent)
        return F.gather(tokens, rows, axis=0)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        spec = self.spec
        return (
            TensorType(dtype, [PROMPTS, CAPTION_PADDED, spec.caption_dim], device),
            TensorType(DType.uint32, [PROMPTS], device),
            TensorType(DType.uint32, [PROMPTS], device),
            TensorType(DType.uint32, [OFFSETS], device),
            TensorType(DType.float32, [PROMPTS, CAPTION_PADDED, spec.head_dim // 2, 2], device),
            TensorType(DType.int32, [ITEMS], device),
        )


class CaptionEmbedder(Module[[Tensor], Tensor]):
    """RMSNorm of the text features, then a projection to the transformer's width."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.norm = RMSNorm(spec.caption_dim, eps=spec.norm_eps)
        self.linear = linear(spec.caption_dim, spec.dim, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """[..., caption_dim] -> [..., dim]."""
        return self.linear(self.norm(features))


class ModulationTable(Module[[Tensor, Tensor], tuple[Tensor, Tensor]]):
    """Timesteps to everything the blocks and the final layer take from them."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec, self.fused = spec, fuses(spec)
        self.t_embedder = TimestepEmbedder(spec)
        self.modulation = linear(spec.adaln_dim, spec.num_blocks * 4 * spec.dim, bias=True)
        self.final_modulation = linear(spec.adaln_dim, spec.dim, bias=True)
        if self.fused:
            self.norms = Tensor.zeros([spec.num_blocks, 4, spec.dim])

    def forward(self, timesteps: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Modulation of all evaluations of a schedule.

        Args:
            timesteps: float32 [steps], 1 - sigma: 0 is pure noise, 1 the finished image.
            kept: float32 [variants, num_blocks], 1 for a block that takes part in a variant and 0 for one that is left
                out of it: its gates are 0, so that it adds nothing.

        Returns:
            float32 [steps, num_blocks, 4, variants, dim] with rows 1 + scale, tanh(gate) of attention, then of the
            feed-forward layer, each times the weight of its norm where blocks are fused; and float32 [steps, dim], 1 +
            scale of the final layer.
        """
        spec = self.spec
        embedding = self.t_embedder(timesteps * spec.t_scale)
        table = self.modulation(embedding).cast(DType.float32)
        table = F.reshape(table, [timesteps.shape[0], spec.num_blocks, 2, 2, spec.dim])
        scale, gate = F.split(table, [1, 1], axis=3)
        table = F.concat([scale + 1.0, unless_too_large(F.tanh(gate), gate)], axis=3)
        table = F.reshape(table, [timesteps.shape[0], spec.num_blocks, 4, spec.dim])
        if self.fused:
            table = table * self.norms.cast(DType.float32)
        table = F.unsqueeze(table, 3) * _shares(kept)
        final_scale = self.final_modulation(F.silu(embedding)).cast(DType.float32) + 1.0
        return table, final_scale

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (
            TensorType(DType.float32, [STEPS], device),
            TensorType(DType.float32, [VARIANTS, self.spec.num_blocks], device),
        )


def _shares(kept: Tensor) -> Tensor:
    """What each variant takes of scales and gates: [variants, num_blocks] -> [1, num_blocks, 4, variants, 1]."""
    blocks = F.unsqueeze(F.transpose(kept, 0, 1), 1)
    whole = F.broadcast_to(F.constant(1.0, DType.float32, device=kept.device), blocks.shape)
    return F.unsqueeze(F.unsqueeze(F.concat([whole, blocks, whole, blocks], axis=1), 0), 4)


class TimestepEmbedder(Module[[Tensor], Tensor]):
    """Sinusoidal features in float32 (cosines first), then two linear layers."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.linear_1 = linear(_SINUSOIDS, _TIMESTEP_HIDDEN, bias=True)
        self.linear_2 = linear(_TIMESTEP_HIDDEN, spec.adaln_dim, bias=True)

    def forward(self, timesteps: Tensor) -> Tensor:
        """float32 [steps], scaled to [0, 1000] -> [steps, adaln_dim] in the model's dtype."""
        half = _SINUSOIDS // 2
        table = F.constant(_frequencies(half), DType.float32, device=timesteps.device)
        angles = F.unsqueeze(timesteps, 1) * F.unsqueeze(table, 0)
        features = F.concat([F.cos(angles), F.sin(angles)], axis=1).cast(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(features)))


def _frequencies(count: int) -> npt.NDArray[np.float32]:
    """Falling from 1 towards 1/_MAX_PERIOD, rounded where the reference rounds.

    Its exponents are float32 numbers. A unit in the last place counts: timesteps up to 1000 multiply it, and exponents
    in float64 move the sinusoids by 5e-5, which triples the error of a randomly initialized transformer.
    """
    exponents = np.float32(-math.log(_MAX_PERIOD)) * np.arange(count, dtype=np.float32) / np.float32(count)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)
