"""The two transformer blocks of Z-Image: with and without modulation by the timestep.

    modulated: x + gate · norm2(attention(norm1(x) · scale)), then the same around the feed-forward layer
    context:   x + norm2(attention(norm1(x))), then the same around the feed-forward layer

On an NVIDIA GPU a modulated block is a `FusedBlock`: its norms are one pass with what stands around them, the first one
of the next block included.

Reference: diffusers models/transformers/transformer_z_image.py, ZImageTransformerBlock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.tensor import Tensor, defaults

from max_zimage.graphs import gpu_ops
from max_zimage.graphs.kernel_library import runs_on_nvidia
from max_zimage.graphs.linear import gated_linear, linear
from max_zimage.graphs.model.attention import ragged_rotary_attention, rotary_attention
from max_zimage.graphs.model.attention_backends import chosen_backend

_QK_NORM_EPS = 1e-5  # fixed in the reference, whatever norm_eps says


class BlockShape(Protocol):
    """What a block needs to know of the transformer."""

    @property
    def dim(self) -> int:
        """Width of a token."""

    @property
    def num_heads(self) -> int:
        """Attention heads."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the feed-forward layer."""

    @property
    def norm_eps(self) -> float:
        """Added to the mean square of every RMSNorm but those of queries and keys."""


def fuses(shape: BlockShape) -> bool:
    """Whether modulated blocks are `FusedBlock`s, for the dtype and device that parameters are declared in."""
    return attends_ragged(shape) and gpu_ops.has_gated_norms(shape.dim)


def attends_ragged(shape: BlockShape) -> bool:
    """Whether attention is `RaggedAttention`, for the dtype and device that parameters are declared in."""
    dtype, mesh = defaults()
    return runs_on_nvidia(dtype, mesh.devices[0]) and gpu_ops.has_rotary_heads(shape.head_dim)


class ModulatedBlock(Module[..., Tensor]):
    """Block whose branches are scaled and gated by the timestep."""

    def __init__(self, shape: BlockShape, attention: Callable[[BlockShape], Module[..., Tensor]] | None = None) -> None:
        self.attention = (attention or attention_layer)(shape)
        self.feed_forward = SwiGLU(shape.dim, shape.ffn_dim)
        self.attention_norm1 = RMSNorm(shape.dim, eps=shape.norm_eps)
        self.attention_norm2 = RMSNorm(shape.dim, eps=shape.norm_eps)
        self.ffn_norm1 = RMSNorm(shape.dim, eps=shape.norm_eps)
        self.ffn_norm2 = RMSNorm(shape.dim, eps=shape.norm_eps)

    def forward(self, x: Tensor, rope: Tensor, extent: Tensor | None, modulation: Tensor, *more: Any) -> Tensor:
        """One block.

        Args:
            x: [items, length, dim] in the model's dtype.
            rope: float32 [items, length, head_dim/2, 2].
            extent: What of the rows exists, see `attention_layer`; None where every position does.
            modulation: float32 [4, 1 or items, dim]: 1 + scale and tanh(gate) of attention, then of the feed-forward
                layer; a gate of 0 leaves its branch out, exactly.
            *more: What attention of another kind takes besides.

        Returns:
            Like `x`.
        """
        scale_attention, gate_attention, scale_ffn, gate_ffn = (modulation[i] for i in range(4))
        mixed = self.attention(times(self.attention_norm1(x), scale_attention), rope, extent, *more)
        x = x + times(self.attention_norm2(mixed), gate_attention)
        fed = self.fed(times(self.ffn_norm1(x), scale_ffn), *more)
        return x + times(self.ffn_norm2(fed), gate_ffn)

    def fed(self, x: Tensor, *more: Any) -> Tensor:
        """What the feed-forward layer makes of its input, whatever attention takes besides."""
        return self.feed_forward(x)


class FusedBlock(Module[..., tuple[Tensor, Tensor]]):
    """`ModulatedBlock` with what the next block's first norm makes of its result beside it; see `fuses`.

    The norms' weights are in the modulation.
    """

    def __init__(self, shape: BlockShape, attention: Callable[[BlockShape], Module[..., Tensor]] | None = None) -> None:
        self.eps = shape.norm_eps
        self.attention = (attention or RaggedAttention)(shape)
        self.feed_forward = SwiGLU(shape.dim, shape.ffn_dim)

    def forward(
        self,
        x: Tensor,
        normed: Tensor,
        rope: Tensor,
        offsets: Tensor | None,
        modulation: Tensor,
        first: Tensor | None = None,
        *more: Any,
    ) -> tuple[Tensor, Tensor]:
        """One block.

        Args:
            x: bfloat16 [items, length, dim].
            normed: Like `x`, norm1(x) · scale.
            rope: float32 [items, length, head_dim/2, 2].
            offsets: See `ragged_rotary_attention`.
            modulation: float32 [rows, 1 or items, dim]: for each block the rows of `ModulatedBlock`, each times its
                norm's weight, the next block's behind them.
            first: int32 on the host, the block's first row; None for the first one.
            *more: What attention of another kind takes besides.

        Returns:
            Like `x` and `normed`, for the next block.
        """
        mixed = self.attention(normed, rope, offsets, *more)
        x, normed = gpu_ops.gated_norms(mixed, x, modulation, first, gate=1, scale=2, epsilon=self.eps)
        return gpu_ops.gated_norms(self.feed_forward(normed), x, modulation, first, gate=3, scale=4, epsilon=self.eps)


class ContextBlock(Module[..., Tensor]):
    """Block of the context refiner: the timestep has no part in it."""

    def __init__(self, shape: BlockShape) -> None:
        self.attention = attention_layer(shape)
        self.feed_forward = SwiGLU(shape.dim, shape.ffn_dim)
        self.attention_norm1 = RMSNorm(shape.dim, eps=shape.norm_eps)
        self.attention_norm2 = RMSNorm(shape.dim, eps=shape.norm_eps)
        self.ffn_norm1 = RMSNorm(shape.dim, eps=shape.norm_eps)
        self.ffn_norm2 = RMSNorm(shape.dim, eps=shape.norm_eps)

    def forward(self, x: Tensor, rope: Tensor, extent: Tensor) -> Tensor:
        """One block; arguments as in `ModulatedBlock.forward`."""
        x = x + self.attention_norm2(self.attention(self.attention_norm1(x), rope, extent))
        return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))


def attention_layer(shape: BlockShape) -> Attention | RaggedAttention:
    """Attention for the dtype and device that parameters are declared in.

    What of the rows exists, `Attention` takes as valid lengths, uint32 [items], and `RaggedAttention` as the offsets of
    sequences, uint32 [sequences + 1].
    """
    return RaggedAttention(shape) if attends_ragged(shape) else Attention(shape)


class Attention(Module[..., Tensor]):
    """Bidirectional attention: one matrix for query, key and value, RMSNorm per head, RoPE.

    Rows of queries and keys, and their norms' weights, are ordered as `graphs.model.rope` wants them.
    """

    def __init__(self, shape: BlockShape) -> None:
        self.num_heads, self.head_dim, self.backend = shape.num_heads, shape.head_dim, chosen_backend()
        self.qkv = linear(shape.dim, 3 * shape.dim)
        self.out = linear(shape.dim, shape.dim)
        self.q_norm = RMSNorm(shape.head_dim, eps=_QK_NORM_EPS)
        self.k_norm = RMSNorm(shape.head_dim, eps=_QK_NORM_EPS)

    def forward(self, x: Tensor, rope: Tensor, valid_length: Tensor | None) -> Tensor:
        """[items, length, dim] -> the same."""
        items, length, dim = x.shape
        qkv = F.reshape(self.qkv(x), [items, length, 3 * self.num_heads, self.head_dim])
        mixed = rotary_attention(
            qkv, self.q_norm, self.k_norm, rope, heads=self.num_heads, valid_length=valid_length, backend=self.backend
        )
        return self.out(F.reshape(mixed, [items, length, dim]))


class RaggedAttention(Module[..., Tensor]):
    """`Attention` on an NVIDIA GPU, see `attends_ragged`; values have a matrix of their own."""

    def __init__(self, shape: BlockShape) -> None:
        self.num_heads, self.head_dim, self.backend = shape.num_heads, shape.head_dim, chosen_backend()
        self.qk = linear(shape.dim, 2 * shape.dim)
        self.v = linear(shape.dim, shape.dim)
        self.out = linear(shape.dim, shape.dim)
        self.q_norm = RMSNorm(shape.head_dim, eps=_QK_NORM_EPS)
        self.k_norm = RMSNorm(shape.head_dim, eps=_QK_NORM_EPS)

    def forward(self, x: Tensor, rope: Tensor, offsets: Tensor | None) -> Tensor:
        """[items, length, dim] -> the same."""
        items, length, dim = x.shape
        qk = F.reshape(self.qk(x), [items, length, 2 * self.num_heads, self.head_dim])
        value = F.reshape(self.v(x), [items, length, self.num_heads, self.head_dim])
        mixed = ragged_rotary_attention(
            qk, value, self.q_norm, self.k_norm, rope, offsets=offsets, backend=self.backend
        )
        return self.out(F.reshape(mixed, [items, length, dim]))


class SwiGLU(Module[[Tensor], Tensor]):
    """w2(silu(w1 x) · w3 x), with w1 and w3 fused into one matrix product."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        self.w13 = gated_linear(dim, hidden_dim)
        self.w2 = linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[items, length, dim] -> the same."""
        return self.w2(self.w13(x))


def times(x: Tensor, factor: Tensor) -> Tensor:
    """[items, length, dim] times float32 [1 or items, dim], in float32 and back in x's dtype.

    The modulation keeps its precision, at no cost in a fused pass.
    """
    return (x.cast(DType.float32) * F.unsqueeze(factor, 1)).cast(x.dtype)
