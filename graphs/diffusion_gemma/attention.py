"""Attention over what was read before and what is new: new keys and values stand behind the former.

    query = rope(norm(q_proj x)), key = rope(norm(k_proj x))
    value = unit norm(v_proj x), or of k_proj x in layers that have no v_proj
    softmax(query (past key | key)ᵀ + mask) (past value | value)

Scores have the scale 1. A mask hides what a position does not see; all query heads of a row share it.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, DiffusionGemmaEncoderTextAttention and
DiffusionGemmaDecoderTextAttention.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.nn.norm.rms_norm import rms_norm
from max.experimental.tensor import Tensor
from max.graph import Dim
from typing_extensions import override

from max_zimage.graphs import ops
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec, LayerShape
from max_zimage.graphs.linear import linear
from max_zimage.graphs.model.rope import rotate


class Attention(Module[..., tuple[Tensor, Tensor, Tensor]]):
    """Grouped-query attention with keys and values of what was read before."""

    def __init__(self, spec: DiffusionGemmaSpec, shape: LayerShape) -> None:
        self.heads, self.shape, self.epsilon = spec.num_heads, shape, spec.norm_eps
        channels = spec.num_heads + (2 if shape.has_values else 1) * shape.key_heads
        self.qkv_proj = linear(spec.hidden_size, channels * shape.head_dim)
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
        query, key, value = self.projected(x, rope)
        keys, values = behind(past, (key, value), mask.shape[2])
        mixed = mixed_by_heads(query, keys, values, mask)
        return self.o_proj(F.reshape(mixed, [rows, length, self.heads * self.shape.head_dim])), key, value

    def projected(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [rows, length, heads, head_dim], and keys and values [rows, length, key_heads, head_dim]."""
        shape = self.shape
        rows, length, _ = x.shape
        parts = [self.heads, *[shape.key_heads] * (2 if shape.has_values else 1)]
        qkv = F.reshape(self.qkv_proj(x), [rows, length, sum(parts), shape.head_dim])
        query, key, *values = F.split(qkv, parts, axis=2)
        value = unit_norm(values[0] if values else key, self.epsilon)
        table = F.unsqueeze(rope, 0)
        return rotate(self.q_norm(query), table), rotate(self.k_norm(key), table), value


def behind(past: tuple[Tensor, ...], new: tuple[Tensor, Tensor], keys: Dim) -> tuple[Tensor, ...]:
    """New keys and values behind those of the past; `keys` is the name of how many there are then."""
    rows, _, heads, head_dim = new[0].shape
    both = (F.concat([old, each], axis=1) for old, each in zip(past, new, strict=True))
    return tuple(F.rebind(each, [rows, keys, heads, head_dim]) for each in both)


def mixed_by_heads(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(query keyᵀ + mask) value.

    Args:
        query: [rows, length, heads, head_dim].
        key: [rows, keys, key_heads, head_dim]; as many query heads in a row share one as come out even.
        value: Like `key`.
        mask: float32 [rows, length, keys].

    Returns:
        Like `query`.
    """
    if query.device.is_host:
        query_wide, key_wide, value_wide = (each.cast(DType.float32) for each in (query, key, value))
        return ops.flash_attention_cpu(query_wide, key_wide, value_wide, mask, 1.0).cast(query.dtype)
    return mixed_by_groups(query, F.permute(key, [0, 2, 1, 3]), F.permute(value, [0, 2, 1, 3]), mask)


def mixed_by_groups(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same as products of matrices, of keys and values [rows, key_heads, keys, head_dim]."""
    rows, length, heads, head_dim = query.shape
    shared, keys = key.shape[1], key.shape[2]
    group = int(heads) // int(shared)
    query = F.permute(F.reshape(query, [rows, length, shared, group, head_dim]), [0, 2, 3, 1, 4])
    scores = F.reshape(query, [rows, shared, group * length, head_dim]) @ F.permute(key, [0, 1, 3, 2])
    scores = F.reshape(scores.cast(DType.float32), [rows, shared, group, length, keys])
    hidden = F.unsqueeze(F.unsqueeze(mask, 1), 1)
    weights = F.softmax(F.reshape(scores + hidden, [rows, shared, group * length, keys])).cast(value.dtype)
    mixed = F.reshape(weights @ value, [rows, shared, group, length, head_dim])
    return F.reshape(F.permute(mixed, [0, 3, 1, 2, 4]), [rows, length, heads, head_dim])


class Norm(RMSNorm):
    """RMSNorm that is rounded once, behind its weight; MAX's own rounds before it, too."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return rms_norm(x, self.weight, self.eps, multiply_before_cast=True)


def unit_norm(x: Tensor, epsilon: float) -> Tensor:
    """RMSNorm without a weight, over the last axis; in float32, returned in x's dtype."""
    wide = x.cast(DType.float32)
    return (wide * F.rsqrt(F.mean(wide * wide, axis=-1) + epsilon)).cast(x.dtype)
