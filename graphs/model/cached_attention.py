"""Attention over what was read before and what is new, whose keys and values stand behind the former.

    query = rope(norm q), key = rope(norm k), value = v, or unit norm(v)
    softmax(scale · query (past key | key)ᵀ + mask) (past value | value)

A mask hides what a position does not see; all query heads of a row share it. It is added and softmax is taken in
float32. On a CPU scores are float32 throughout; as products of matrices they are rounded to the queries' dtype before.

Reference: transformers models/qwen3/modeling_qwen3.py, Qwen3Attention; models/diffusion_gemma/
modeling_diffusion_gemma.py, DiffusionGemmaDecoderTextAttention.
"""

from __future__ import annotations

from typing import NamedTuple

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn.norm import RMSNorm
from max.experimental.tensor import Tensor
from max.graph import Dim

from max_zimage.graphs import ops, text_ops
from max_zimage.graphs.kernel_library import uses_cpu_kernels
from max_zimage.graphs.model.rope import rotate


class Heads(NamedTuple):
    """How the fused product of queries, keys and values is to be read.

    Attributes:
        query: Heads of the queries, which come first.
        key: Of keys, and of values behind them; those that have none are the keys before norm and RoPE.
        unit_values: Whether values are normalized, without a weight.
    """

    query: int
    key: int
    unit_values: bool = False


def cached_attention(
    qkv: Tensor,
    norms: tuple[RMSNorm, RMSNorm],
    rope: Tensor,
    mask: Tensor,
    past: tuple[Tensor, ...],
    *,
    heads: Heads,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend from the fused product of queries, keys and values.

    Args:
        qkv: [rows, length, channels, head_dim].
        norms: Of queries and of keys, [head_dim] each; the epsilon of the latter is that of all norms here.
        rope: float32 [length, head_dim/2, 2].
        mask: float32 [rows, length, keys], added to the scores; keys are those of the past and then the new.
        past: Keys and values that were read before, [rows, cached, heads.key, head_dim] each.
        heads: What the channels are.
        scale: Factor of the scores.

    Returns:
        [rows, length, heads.query, head_dim]; new keys and values, [rows, length, heads.key, head_dim] each.
    """
    if has_op(qkv):
        query_norm, key_norm = norms
        return text_ops.cached_attention(
            *(qkv, query_norm.weight, key_norm.weight, rope, mask, past),
            heads=heads.query,
            key_heads=heads.key,
            unit_values=heads.unit_values,
            epsilon=key_norm.eps,
            scale=scale,
        )
    query, key, value = projected(qkv, norms, rope, heads)
    keys, values = behind(past, (key, value), mask.shape[2])
    return mixed_by_heads(query, keys, values, mask, scale), key, value


def has_op(qkv: Tensor) -> bool:
    """Whether an op of `kernels` attends; it wants heads whose halves are whole vectors."""
    return uses_cpu_kernels(qkv.dtype, qkv.device) and ops.supports_head_dim(int(qkv.shape[3]))


def projected(qkv: Tensor, norms: tuple[RMSNorm, RMSNorm], rope: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [rows, length, heads.query, head_dim], and keys and values [rows, length, heads.key, head_dim]."""
    (query_norm, key_norm), channels = norms, int(qkv.shape[2])
    parts = [heads.query, *[heads.key] * ((channels - heads.query) // heads.key)]
    query, key, *values = F.split(qkv, parts, axis=2)
    value = values[0] if values else key
    value = unit_norm(value, key_norm.eps) if heads.unit_values else value
    table = F.unsqueeze(rope, 0)
    return rotate(query_norm(query), table), rotate(key_norm(key), table), value


def behind(past: tuple[Tensor, ...], new: tuple[Tensor, Tensor], keys: Dim) -> tuple[Tensor, ...]:
    """New keys and values behind those of the past; `keys` is the name of how many there are then."""
    rows, _, heads, head_dim = new[0].shape
    both = (F.concat([old, each], axis=1) for old, each in zip(past, new, strict=True))
    return tuple(F.rebind(each, [rows, keys, heads, head_dim]) for each in both)


def mixed_by_heads(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale · query keyᵀ + mask) value.

    Args:
        query: [rows, length, heads, head_dim].
        key: [rows, keys, key_heads, head_dim]; as many query heads in a row share one as come out even.
        value: Like `key`.
        mask: float32 [rows, length, keys].
        scale: Factor of the scores.

    Returns:
        Like `query`.
    """
    if query.device.is_host and ops.supports_head_dim(int(query.shape[3])):
        query_wide, key_wide, value_wide = (each.cast(DType.float32) for each in (query, key, value))
        return ops.flash_attention_cpu(query_wide, key_wide, value_wide, mask, scale).cast(query.dtype)
    return mixed_by_groups(query, F.permute(key, [0, 2, 1, 3]), F.permute(value, [0, 2, 1, 3]), mask, scale)


def mixed_by_groups(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The same as products of matrices, of keys and values [rows, key_heads, keys, head_dim]."""
    rows, length, heads, head_dim = query.shape
    shared, keys = key.shape[1], key.shape[2]
    group = int(heads) // int(shared)
    query = F.permute(F.reshape(query, [rows, length, shared, group, head_dim]), [0, 2, 3, 1, 4])
    scores = F.reshape(query, [rows, shared, group * length, head_dim]) @ F.permute(key, [0, 1, 3, 2])
    scores = F.reshape(scores.cast(DType.float32), [rows, shared, group, length, keys])
    scores = scores if scale == 1.0 else scores * scale
    hidden = F.unsqueeze(F.unsqueeze(mask, 1), 1)
    weights = F.softmax(F.reshape(scores + hidden, [rows, shared, group * length, keys])).cast(value.dtype)
    mixed = F.reshape(weights @ value, [rows, shared, group, length, head_dim])
    return F.reshape(F.permute(mixed, [0, 3, 1, 2, 4]), [rows, length, heads, head_dim])


def unit_norm(x: Tensor, epsilon: float) -> Tensor:
    """RMSNorm without a weight, over the last axis; in float32, returned in x's dtype."""
    wide = x.cast(DType.float32)
    return (wide * F.rsqrt(F.mean(wide * wide, axis=-1) + epsilon)).cast(x.dtype)
