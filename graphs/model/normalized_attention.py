"""Normalized attention guidance: a negative caption that acts inside attention, where the other guidance is off.

A picture is seen under two captions at once. In every main layer its image tokens attend to themselves and to one
caption, then to themselves and to the other; of the two results z+ and z-, token by token,

    z~ = scale · z+ - (scale - 1) · z-
    r  = |z~| / (|z+| + 1e-6), the sums of absolute values over all heads
    z  = alpha · z~ · min(1, tau / r) + (1 - alpha) · z+

is what goes on, in float32, before attention's last projection. Both captions then see the same image tokens, so these
are computed once: a row holds [image, caption, negative caption], and attention alone takes it apart into two rows,
each with the positions that its caption gives the image. Tokens of the captions are not guided.

The noise refiner sees no caption, and its blocks are those of the plain transformer, with the positions of the caption.
Those of the negative one would make the same of the image, but for its pad tokens, which stand at 0 whatever the
caption's length.

Reference: Chen et al., "Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models" (2025); its
authors' ComfyUI-NAG, flux, where both captions go on with the guided image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.compilation import as_subgraph
from max.experimental.tensor import Tensor
from max.graph import Dim

from max_zimage.graphs import gpu_ops
from max_zimage.graphs.model.attention import ragged_rotary_attention, rotary_attention
from max_zimage.graphs.model.blocks import (
    Attention,
    BlockShape,
    FusedBlock,
    ModulatedBlock,
    RaggedAttention,
    attends_ragged,
    fuses,
)
from max_zimage.graphs.model.transformer import BlockContext, Transformer, TransformerSpec

_EPSILON = 1e-6  # of the reference


class Strength(NamedTuple):
    """How far it goes: float32 [1] each, see above."""

    scale: Tensor
    tau: Tensor
    alpha: Tensor


class Pair(NamedTuple):
    """What attention has to know of rows that hold two captions.

    Attributes:
        image: Image tokens of a row, which stand first.
        strength: How far guidance goes.
    """

    image: Dim
    strength: Strength


class PairedTransformer(Transformer):
    """`Transformer` over pictures that are seen under two captions each, and drawn once."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__(spec, PairedFusedBlock if fuses(spec) else PairedBlock)

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
        *strength: Tensor,
    ) -> Tensor:
        """Velocity of every image token.

        Args:
            latents: float32 [batch, image_tokens, patch_dim].
            caption_tokens: [items, caption_padded, dim] in the model's dtype, refined: each picture's caption, then
                each picture's negative one.
            image_rope: float32 [items, image_padded, head_dim/2, 2]; see `Transformer.forward`, also for what follows.
            rope: float32 [items, tokens, head_dim/2, 2].
            valid_length: uint32 [items].
            offsets: uint32 [sequences + 1].
            modulation: float32 [num_blocks, 4, batch, dim].
            final_scale: float32 [dim].
            *strength: `Strength`.

        Returns:
            Like `latents`.
        """
        batch, count = latents.shape[0], self.spec.num_refiner_layers
        image = self.embed(latents.cast(caption_tokens.dtype), image_rope.shape[1])
        around = BlockContext(caption_tokens, image_rope[:batch], rope, valid_length, offsets, modulation)
        image = self.run(image, range(count), around)
        image = (self._main_fused if self.fused else self._main)(image, around, strength)
        return self.project(image[:, : latents.shape[1]], final_scale)

    def _main(self, image: Tensor, around: BlockContext, strength: Sequence[Tensor]) -> Tensor:
        captions, extent = around.caption_tokens, around.offsets if self.ragged else around.valid_length
        for index, layer in enumerate(self.layers, self.spec.num_refiner_layers):
            block = as_subgraph(layer, name="paired_block")
            image, captions = block(image, captions, around.rope, extent, around.modulation[index], *strength)
        return image

    def _main_fused(self, image: Tensor, around: BlockContext, strength: Sequence[Tensor]) -> Tensor:
        captions, spec = around.caption_tokens, self.spec
        rows = F.reshape(around.modulation, [4 * spec.num_blocks, around.modulation.shape[2], spec.dim])
        start = gpu_ops.host_row(4 * spec.num_refiner_layers)
        normed = gpu_ops.scaled_norm(joined(image, captions), rows, start, scale=0, epsilon=spec.norm_eps)
        tokens = (image, captions, *parted(normed, image, captions))
        for index, layer in enumerate(self.layers, spec.num_refiner_layers):
            block = as_subgraph(layer, name="paired_block")
            tokens = block(*tokens, around.rope, around.offsets, rows, gpu_ops.host_row(4 * index), *strength)
        return tokens[0]


class PairedBlock(ModulatedBlock):
    """`ModulatedBlock` over rows with two captions, which arrive apart: MAX takes no sums of sizes in a subgraph."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape, PairedRaggedAttention if attends_ragged(shape) else PairedAttention)

    def forward(  # type: ignore[override]  # captions apart from the image
        self, image: Tensor, captions: Tensor, rope: Tensor, extent: Tensor, modulation: Tensor, *strength: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One block.

        Args:
            image: [batch, image_padded, dim] in the model's dtype.
            captions: [items, caption_padded, dim]: each picture's caption, then each picture's negative one.
            rope: float32 [items, tokens, head_dim/2, 2].
            extent: See `graphs.model.blocks.attention_layer`, of the items.
            modulation: float32 [4, batch, dim].
            *strength: `Strength`.

        Returns:
            Like `image` and `captions`.
        """
        pair = Pair(image.shape[1], Strength(*strength))
        return parted(super().forward(joined(image, captions), rope, extent, modulation, pair), image, captions)


class PairedFusedBlock(FusedBlock):
    """`FusedBlock` over the same."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape, PairedRaggedAttention)

    def forward(  # type: ignore[override]  # captions apart from the image
        self,
        image: Tensor,
        captions: Tensor,
        normed_image: Tensor,
        normed_captions: Tensor,
        rope: Tensor,
        offsets: Tensor,
        modulation: Tensor,
        first: Tensor,
        *strength: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One block; arguments as in `PairedBlock.forward` and `FusedBlock.forward`."""
        pair = Pair(image.shape[1], Strength(*strength))
        x, normed = joined(image, captions), joined(normed_image, normed_captions)
        x, normed = super().forward(x, normed, rope, offsets, modulation, first, pair)
        return (*parted(x, image, captions), *parted(normed, image, captions))


class PairedAttention(Attention):
    """`Attention` over rows with two captions, guided."""

    def forward(self, x: Tensor, rope: Tensor, valid_length: Tensor | None, *more: Pair) -> Tensor:
        """[batch, image_padded + 2 caption_padded, dim] -> the same; `valid_length` is that of the items."""
        (pair,), (batch, length, _) = more, x.shape
        qkv = F.reshape(self.qkv(x), [batch, length, 3 * self.num_heads, self.head_dim])
        mixed = rotary_attention(
            in_rows(qkv, rope, pair.image), self.q_norm, self.k_norm, rope, heads=self.num_heads,
            valid_length=valid_length, backend=self.backend,
        )  # fmt: skip
        return self.out(guided(mixed, x, pair))


class PairedRaggedAttention(RaggedAttention):
    """`RaggedAttention` over the same."""

    def forward(self, x: Tensor, rope: Tensor, offsets: Tensor | None, *more: Pair) -> Tensor:
        """[batch, image_padded + 2 caption_padded, dim] -> the same; `offsets` are those of the items."""
        (pair,), (batch, length, _) = more, x.shape
        qk = F.reshape(self.qk(x), [batch, length, 2 * self.num_heads, self.head_dim])
        value = F.reshape(self.v(x), [batch, length, self.num_heads, self.head_dim])
        qk, value = (in_rows(each, rope, pair.image) for each in (qk, value))
        mixed = ragged_rotary_attention(
            qk, value, self.q_norm, self.k_norm, rope, offsets=offsets, backend=self.backend
        )
        return self.out(guided(mixed, x, pair))


def joined(image: Tensor, captions: Tensor) -> Tensor:
    """[batch, image, dim] and [2 batch, caption, dim] -> [batch, image + 2 caption, dim]."""
    batch, (_, length, dim) = image.shape[0], captions.shape
    negative = F.rebind(captions[batch:], [batch, length, dim])
    return F.concat([image, captions[:batch], negative], axis=1)


def parted(tokens: Tensor, image: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """What `joined` put together, in the shapes of what it was given."""
    (batch, start, dim), length = image.shape, captions.shape[1]
    positive, negative = tokens[:, start : start + length], tokens[:, start + length :]
    both = F.concat([F.rebind(each, [batch, length, dim]) for each in (positive, negative)], axis=0)
    return F.rebind(tokens[:, :start], image.shape), F.rebind(both, captions.shape)


def in_rows(heads: Tensor, rope: Tensor, image: Dim) -> Tensor:
    """[batch, image + 2 caption, heads, head_dim] -> [items, tokens, heads, head_dim], one caption a row."""
    (batch, _, *rest), (items, tokens) = heads.shape, rope.shape[:2]
    negative = F.concat([heads[:, :image], heads[:, tokens:]], axis=1)
    both = [F.rebind(each, [batch, tokens, *rest]) for each in (heads[:, :tokens], negative)]
    return F.rebind(F.concat(both, axis=0), [items, tokens, *rest])


def guided(mixed: Tensor, like: Tensor, pair: Pair) -> Tensor:
    """What attention made of each row, guided and back together.

    Args:
        mixed: [items, tokens, heads, head_dim]: each picture under its caption, then each under its negative one.
        like: [batch, image + 2 caption, dim].
        pair: Of the rows.

    Returns:
        Like `like`: the guided image, the caption, the negative caption.
    """
    (batch, _, dim), (items, tokens) = like.shape, mixed.shape[:2]
    flat = F.reshape(mixed, [items, tokens, dim])
    positive, negative = flat[:batch], F.rebind(flat[batch:], [batch, tokens, dim])
    image = normalized(positive[:, : pair.image], negative[:, : pair.image], pair.strength)
    return F.rebind(F.concat([image, positive[:, pair.image :], negative[:, pair.image :]], axis=1), like.shape)


def normalized(positive: Tensor, negative: Tensor, strength: Strength) -> Tensor:
    """The z of z+ and z-; see above.

    Args:
        positive: [batch, tokens, dim].
        negative: Like `positive`.
        strength: How far it goes.

    Returns:
        Like `positive`, computed in float32 and rounded once.
    """
    plus, minus = positive.cast(DType.float32), negative.cast(DType.float32)
    further = strength.scale * plus - (strength.scale - 1.0) * minus
    ratio = _size(further) / (_size(plus) + _EPSILON)
    tau = F.broadcast_to(strength.tau, ratio.shape)
    ones = F.broadcast_to(F.constant(1.0, DType.float32, device=ratio.device), ratio.shape)
    limited = further * F.where(ratio > tau, tau / ratio, ones)
    return (strength.alpha * limited + (1.0 - strength.alpha) * plus).cast(positive.dtype)


def _size(x: Tensor) -> Tensor:
    """Sum of a token's absolute values, float32 [batch, tokens, 1]."""
    return F.sum(F.abs(x), axis=2)
