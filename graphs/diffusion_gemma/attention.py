"""Attention over what was read before and what is new: new keys and values stand behind the former.

    query = rope(norm(q_proj x)), key = rope(norm(k_proj x))
    value = unit norm(v_proj x), or of k_proj x in layers that have no v_proj
    softmax(query (past key | key)ᵀ + mask) (past value | value)

Scores have the scale 1. A mask hides what a position does not see; all query heads of a row share it.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, DiffusionGemmaEncoderTextAttention and
DiffusionGemmaDecoderTextAttention.
"""

from __future__ import annotations

from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.nn.norm.rms_norm import rms_norm
from max.experimental.tensor import Tensor
from typing_extensions import override

from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec, LayerShape
from max_zimage.graphs.linear import linear
from max_zimage.graphs.model.cached_attention import Heads, cached_attention, has_op, projected


class Attention(Module[..., tuple[Tensor, Tensor, Tensor]]):
    """Grouped-query attention with keys and values of what was read before."""

    def __init__(self, spec: DiffusionGemmaSpec, shape: LayerShape) -> None:
        self.shape, self.kinds = shape, Heads(spec.num_heads, shape.key_heads, unit_values=True)
        self.channels = spec.num_heads + (2 if shape.has_values else 1) * shape.key_heads
        self.qkv_proj = linear(spec.hidden_size, self.channels * shape.head_dim)
        self.o_proj = linear(spec.num_heads * shape.head_dim, spec.hidden_size)
        self.q_norm = Norm(shape.head_dim, eps=spec.norm_eps)
        self.k_norm = Norm(shape.head_dim, eps=spec.norm_eps)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix.

        Args:
            x: [rows, length, hidden_size].
            rope: float32 [length, head_dim/2, 2].
            mask: float32 [rows, length, keys], added to the scores; keys are those of the past and then the new.
            *past: Keys and values that were read before, [rows, cached, key_heads, head_dim] each.

        Returns:
            Like `x`; its own keys and values, [rows, length, key_heads, head_dim] each.
        """
        rows, length, _ = x.shape
        norms = self.q_norm, self.k_norm
        mixed, key, value = cached_attention(self.fused(x), norms, rope, mask, past, heads=self.kinds)
        return self.o_proj(F.reshape(mixed, [rows, length, self.kinds.query * self.shape.head_dim])), key, value

    def keys_and_values(self, x: Tensor, rope: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` returns of these, alone."""
        qkv, norms = self.fused(x), (self.q_norm, self.k_norm)
        if has_op(qkv):  # which has no part for them: one layer of a reading attends in vain
            _, key, value = cached_attention(qkv, norms, rope, mask, past, heads=self.kinds)
        else:
            _, key, value = projected(qkv, norms, rope, self.kinds)
        return key, value

    def fused(self, x: Tensor) -> Tensor:
        """[rows, length, hidden_size] -> queries, keys and values before their norms, [rows, length, all, head_dim]."""
        rows, length, _ = x.shape
        return F.reshape(self.qkv_proj(x), [rows, length, self.channels, self.shape.head_dim])


class Norm(RMSNorm):
    """RMSNorm that is rounded once, behind its weight; MAX's own rounds before it, too."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return rms_norm(x, self.weight, self.eps, multiply_before_cast=True)
