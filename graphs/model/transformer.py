"""Z-Image's diffusion transformer for one timestep: noisy image tokens and refined captions in, velocity out.

    latents -> embed -> (+ image pad tokens) -> [modulated block] x refiner layers --+
                                              refined caption tokens (+ batch padding) --+-> [modulated block] x layers
                                              -> final layer

Tokens stand in the order [image, caption], so that the padding of captions of unequal length is at the end of each row
and a valid length says what is attended. The pad tokens that round the image and each caption up to a multiple of 32
are learned and attended.

Everything that depends on the timestep alone arrives as `modulation` and `final_scale` (see
`graphs.model.conditioning`): 1 + scale and tanh(gate) are already applied.

Reference: diffusers models/transformers/transformer_z_image.py, ZImageTransformer2DModel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.compilation import as_subgraph
from max.experimental.nn import Module
from max.experimental.nn.sequential import ModuleList
from max.experimental.tensor import Tensor
from max.graph import Dim

from max_zimage.graphs import gpu_ops
from max_zimage.graphs.dims import PATCH
from max_zimage.graphs.linear import linear
from max_zimage.graphs.model.blocks import FusedBlock, ModulatedBlock, attends_ragged, fuses

_FINAL_NORM_EPS = 1e-6  # the reference's LayerNorm before the last projection; not part of the configuration


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """Shape of a Z-Image transformer.

    Raises:
        ValueError: If the head dimension does not equal the sum of the RoPE axes, or an axis is odd.
    """

    dim: int
    num_heads: int
    num_layers: int
    num_refiner_layers: int
    in_channels: int
    caption_dim: int
    norm_eps: float
    rope_theta: float
    axes_dims: tuple[int, int, int]
    axes_lens: tuple[int, int, int]
    t_scale: float

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"transformer: dim {self.dim} is not a multiple of n_heads {self.num_heads}")
        if self.head_dim != sum(self.axes_dims):
            raise ValueError(
                f"transformer: the head dimension {self.head_dim} (dim {self.dim} / n_heads {self.num_heads}) must "
                f"equal the sum of axes_dims {self.axes_dims}, which is {sum(self.axes_dims)}"
            )
        if any(axis % 2 for axis in self.axes_dims):
            raise ValueError(f"transformer: every entry of axes_dims must be even, got {self.axes_dims}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the feed-forward layers."""
        return int(self.dim / 3 * 8)

    @property
    def adaln_dim(self) -> int:
        """Width of the timestep embedding."""
        return min(self.dim, 256)

    @property
    def patch_dim(self) -> int:
        """Numbers in one image token of the latents."""
        return PATCH * PATCH * self.in_channels

    @property
    def num_blocks(self) -> int:
        """Blocks that the timestep modulates: noise refiner and main layers."""
        return self.num_refiner_layers + self.num_layers


class BlockContext(NamedTuple):
    """What the blocks see besides their tokens; see `Transformer.forward`."""

    caption_tokens: Tensor
    image_rope: Tensor
    rope: Tensor
    valid_length: Tensor
    offsets: Tensor
    modulation: Tensor
    more: tuple[Tensor, ...] = ()


MakeBlock = Callable[[TransformerSpec], Module[..., Any]]


def block_kind(spec: TransformerSpec) -> MakeBlock:
    """What makes a modulated block, for the dtype and device that parameters are declared in."""
    return FusedBlock if fuses(spec) else ModulatedBlock


class Trunk(Module[..., Tensor]):
    """What stands before the final layer; a part of the main layers may do.

    Args:
        spec: Shape of the whole transformer.
        num_layers: Main layers that it has.
        main: Makes one of them; those of every step if not given.
        refiner: Makes a block of the noise refiner, likewise.
    """

    def __init__(
        self,
        spec: TransformerSpec,
        num_layers: int,
        main: MakeBlock | None = None,
        refiner: MakeBlock | None = None,
    ) -> None:
        self.spec, self.fused, self.ragged = spec, fuses(spec), attends_ragged(spec)
        block = block_kind(spec)
        self.x_embedder = linear(spec.patch_dim, spec.dim, bias=True)
        self.x_pad_token = Tensor.zeros([1, spec.dim])
        self.noise_refiner = ModuleList((refiner or block)(spec) for _ in range(spec.num_refiner_layers))
        self.layers = ModuleList((main or block)(spec) for _ in range(num_layers))

    def run(self, tokens: Tensor, blocks: range, around: BlockContext) -> Tensor:
        """Some of the blocks, counted from the noise refiner's first one; captions join before the first main layer.

        Args:
            tokens: [items, image_padded, dim], or with captions behind them [items, tokens, dim].
            blocks: Which blocks.
            around: What they see besides.

        Returns:
            Like `tokens`, with captions behind them if a main layer was among the blocks.
        """
        if self.fused:
            return self._run_fused(tokens, blocks, around)
        refiners = self.spec.num_refiner_layers
        extent = around.offsets if self.ragged else around.valid_length
        for index in blocks:
            modulation = around.modulation[index]
            if index < refiners:
                block = as_subgraph(self.noise_refiner[index], name="refiner_block")
                tokens = block(tokens, around.image_rope, None, modulation)
                continue
            tokens = self.join(tokens, around) if index == refiners else tokens
            block = as_subgraph(self.layers[index - refiners], name="main_block")
            tokens = block(tokens, around.rope, extent, modulation)
        return tokens

    def _run_fused(self, tokens: Tensor, blocks: range, around: BlockContext) -> Tensor:
        """`run` with blocks that hand the next one its first norm; what stands first among tokens is made here."""
        refiners, normed, rows = self.spec.num_refiner_layers, None, self.rows(around.modulation)
        for index in blocks:
            if index == refiners:
                tokens, normed = self.join(tokens, around), None
            first = gpu_ops.host_row(4 * index)
            if normed is None:
                normed = gpu_ops.scaled_norm(tokens, rows, first, scale=0, epsilon=self.spec.norm_eps)
            if index < refiners:
                block = as_subgraph(self.noise_refiner[index], name="refiner_block")
                tokens, normed = block(tokens, normed, around.image_rope, None, rows, first)
            else:
                block = as_subgraph(self.layers[index - refiners], name="main_block")
                tokens, normed = block(tokens, normed, around.rope, around.offsets, rows, first)
        return tokens

    def rows(self, modulation: Tensor) -> Tensor:
        """[num_blocks, 4, items, dim] -> [4 num_blocks, items, dim]."""
        return F.reshape(modulation, [4 * self.spec.num_blocks, modulation.shape[2], self.spec.dim])

    def join(self, image: Tensor, around: BlockContext) -> Tensor:
        """Image tokens with the caption's behind: [items, tokens, dim]."""
        items, length = around.rope.shape[0], around.rope.shape[1]
        return F.rebind(F.concat([image, around.caption_tokens], axis=1), [items, length, self.spec.dim])

    def embed(self, latents: Tensor, image_padded: Dim) -> Tensor:
        """Project to the model's width and append pad tokens up to the padded length."""
        items, image_tokens = latents.shape[0], latents.shape[1]
        pads = F.broadcast_to(F.unsqueeze(self.x_pad_token, 0), [items, image_padded - image_tokens, self.spec.dim])
        return F.rebind(F.concat([self.x_embedder(latents), pads], axis=1), [items, image_padded, self.spec.dim])


class Transformer(Trunk):
    """The part of Z-Image that runs once a step."""

    def __init__(self, spec: TransformerSpec, main: MakeBlock | None = None, refiner: MakeBlock | None = None) -> None:
        super().__init__(spec, spec.num_layers, main, refiner)
        self.final_layer = FinalLayer(spec)

    def forward(
        self,
        latents: Tensor,
        caption_tokens: Tensor,
        image_rope: Tensor,
        rope: Tensor,
        valid_length: Tensor,
        offsets: Tensor,
        modulation: Tensor,
        final_scale: Tensor,
        *more: Tensor,
    ) -> Tensor:
        """Velocity of every image token.

        Args:
            latents: float32 [items, image_tokens, patch_dim].
            caption_tokens: [items, caption_padded, dim] in the model's dtype, refined.
            image_rope: float32 [items, image_padded, head_dim/2, 2].
            rope: float32 [items, tokens, head_dim/2, 2], the same with the captions' positions behind.
            valid_length: uint32 [items], image_padded plus the item's own padded caption length.
            offsets: uint32 [sequences + 1], the same as sequences, see
                `max_zimage.sampling.positions.sequence_offsets`: the form that attention on an NVIDIA GPU takes.
            modulation: float32 [num_blocks, 4, 1 or items, dim] of this timestep, see
                `graphs.model.conditioning.ModulationTable`.
            final_scale: float32 [dim] of this timestep.
            *more: What blocks of another kind see besides.

        Returns:
            float32 [items, image_tokens, patch_dim].
        """
        image = self.embed(latents.cast(caption_tokens.dtype), image_rope.shape[1])
        surroundings = BlockContext(caption_tokens, image_rope, rope, valid_length, offsets, modulation, more)
        tokens = self.run(image, range(self.spec.num_blocks), surroundings)
        return self.project(tokens[:, : latents.shape[1]], final_scale)

    def project(self, hidden: Tensor, final_scale: Tensor) -> Tensor:
        """Final layer: [items, image_tokens, dim] -> velocity, float32 [items, image_tokens, patch_dim]."""
        return self.final_layer(hidden, final_scale).cast(DType.float32)


class FinalLayer(Module[[Tensor, Tensor], Tensor]):
    """LayerNorm without weights, scaled by the timestep, projected to latent patches."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.linear = linear(spec.dim, spec.patch_dim, bias=True)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """[items, tokens, dim] and float32 [dim] -> [items, tokens, patch_dim]."""
        # Written out: MAX would compile kernels twice, once to broadcast a single zero while it compiles.
        offset = F.constant(np.zeros(int(scale.shape[0]), np.float32), DType.float32, device=x.device)
        normed = F.layer_norm(x.cast(DType.float32), scale, offset, _FINAL_NORM_EPS)
        return self.linear(normed.cast(x.dtype))
