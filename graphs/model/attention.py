"""Attention that never writes the score matrix, on a CPU or a GPU from one call.

Reference: diffusers models/transformers/transformer_z_image.py, ZSingleStreamAttnProcessor (norm_q, norm_k,
apply_rotary_emb, scaled_dot_product_attention).
"""

from __future__ import annotations

from max.driver import Device
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn.norm import RMSNorm
from max.experimental.tensor import Tensor
from max.graph import DeviceRef

from max_zimage.graphs import gpu_ops, ops
from max_zimage.graphs.kernel_library import runs_on_nvidia
from max_zimage.graphs.model.attention_backends import Backend, available, plain_attention
from max_zimage.graphs.model.rope import rotate

_MASKED = -1e30  # exp() of it is zero next to any real score; -inf would turn a fully masked block into NaN
_EVERY = 2**31  # more positions than there are


def rotary_attention(
    qkv: Tensor,
    query_norm: RMSNorm,
    key_norm: RMSNorm,
    rope: Tensor,
    *,
    heads: int,
    valid_length: Tensor | None = None,
    causal: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """Attention from the fused product of queries, keys and values: RMSNorm per head and RoPE, then the mixing.

    Args:
        qkv: [items, length, heads + 2 key_value_heads, head_dim].
        query_norm: Of the queries, [head_dim].
        key_norm: Of the keys; its epsilon is the queries' too.
        rope: float32 [1 or items, length, head_dim/2, 2], see `graphs.model.rope.rotate`.
        heads: Of the queries; `key_value_heads` divides it.
        valid_length: See `attention`, also for `causal`.
        causal: Whether position i sees positions 0..i only.
        backend: Which way; None for what dtype and device choose.

    Returns:
        [items, length, heads, head_dim] in qkv's dtype. Rows beyond `valid_length` are unspecified.
    """
    channels, head_dim = int(qkv.shape[2]), int(qkv.shape[3])
    if backend in (None, "max_zimage") and has_own(qkv.dtype, qkv.device, head_dim):
        lengths = _every(qkv) if valid_length is None else valid_length
        weights = query_norm.weight, key_norm.weight
        epsilon = query_norm.eps
        return ops.rotary_attention(qkv, *weights, rope, lengths, heads=heads, causal=causal, epsilon=epsilon)
    shared = (channels - heads) // 2
    if valid_length is None and runs_on_nvidia(qkv.dtype, qkv.device) and gpu_ops.has_rotary_heads(head_dim):
        weights = query_norm.weight, key_norm.weight
        query, key = gpu_ops.rotary_heads(
            qkv, *weights, rope, query_heads=heads, key_heads=shared, epsilon=query_norm.eps
        )
        value = qkv[:, :, heads + shared :]
        return attention(query, key, value, scale=head_dim**-0.5, causal=causal, backend=backend)
    query, key, value = F.split(qkv, [heads, shared, shared], axis=2)
    query, key = rotate(query_norm(query), rope), rotate(key_norm(key), rope)
    return attention(query, key, value, scale=head_dim**-0.5, valid_length=valid_length, causal=causal, backend=backend)


def ragged_rotary_attention(
    qk: Tensor,
    value: Tensor,
    query_norm: RMSNorm,
    key_norm: RMSNorm,
    rope: Tensor,
    *,
    offsets: Tensor | None,
    backend: Backend | None = None,
) -> Tensor:
    """`rotary_attention` on an NVIDIA GPU, with as many keys as queries, where values have a product of their own.

    A part of a tensor would be copied before attention takes it, and a valid length would choose a kernel that does
    not know Hopper's own instructions. Sequences of their own hide a row's padding just as well.

    Args:
        qk: bfloat16 [items, length, 2 heads, head_dim], all queries of a token before its keys.
        value: bfloat16 [items, length, heads, head_dim].
        query_norm: Of the queries, [head_dim].
        key_norm: Of the keys; its epsilon is the queries' too.
        rope: float32 [1 or items, length, head_dim/2, 2], see `graphs.model.rope.rotate`.
        offsets: uint32 [sequences + 1] from `max_zimage.sampling.positions.sequence_offsets`; None where a row is a
            sequence.
        backend: Which way; None for MAX's.

    Returns:
        Like `value`. Tokens of one sequence are mixed with each other.
    """
    heads, head_dim = value.shape[2:]
    weights = query_norm.weight, key_norm.weight
    query, key = gpu_ops.rotary_heads(qk, *weights, rope, query_heads=int(heads), epsilon=query_norm.eps)
    if backend == "plain":
        mask = None if offsets is None else sequence_mask(offsets, value)
        return plain_attention(query, key, value, int(head_dim) ** -0.5, mask)
    if offsets is None:
        return ops.flash_attention_gpu(query, key, value, int(head_dim) ** -0.5, causal=False, valid_length=None)
    return ragged_mixed(query, key, value, offsets)


def ragged_mixed(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
    """Attention within sequences on an NVIDIA GPU.

    Args:
        query: [items, length, heads, head_dim].
        key: Like `query`.
        value: Like `query`.
        offsets: See `ragged_rotary_attention`.

    Returns:
        Like `query`.
    """
    items, length, heads, head_dim = query.shape
    longest = F.shape_to_tensor([length]).cast(DType.uint32)
    query, key, value = (F.reshape(each, [items * length, heads, head_dim]) for each in (query, key, value))
    mixed = ops.flash_attention_ragged_gpu(query, key, value, offsets, longest, int(head_dim) ** -0.5)
    return F.reshape(mixed, [items, length, heads, head_dim])


def joint_attention(qkv: Tensor, *, heads: int, backend: Backend | None = None) -> Tensor:
    """Attention from the fused product of queries, keys and values as they are; all positions exist.

    Args:
        qkv: [items, length, 3 heads, head_dim].
        heads: As many for queries, keys and values.
        backend: Which way; None for what dtype and device choose.

    Returns:
        [items, length, heads, head_dim] in qkv's dtype.
    """
    head_dim = int(qkv.shape[3])
    if backend in (None, "max_zimage") and has_own(qkv.dtype, qkv.device, head_dim):
        return ops.attention(qkv, _every(qkv), heads=heads)
    query, key, value = F.split(qkv, [heads] * 3, axis=2)
    return attention(query, key, value, scale=head_dim**-0.5, backend=backend)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    valid_length: Tensor | None = None,
    causal: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """Scaled dot-product attention.

    Args:
        query: [batch, length, heads, head_dim].
        key: [batch, length, key_value_heads, head_dim]; fewer heads than the query's are shared by groups.
        value: like `key`.
        scale: Factor of the scores, usually 1/sqrt(head_dim).
        valid_length: uint32 [batch]: keys at this position and beyond are not attended. None attends all.
        causal: Whether position i sees positions 0..i only.
        backend: Which way; None, and all but "plain", for MAX's kernel.

    Returns:
        [batch, length, heads, head_dim] in the query's dtype. Rows beyond `valid_length` are unspecified.
    """
    if backend == "plain":
        return plain_attention(query, key, value, scale, _plain_mask(query, valid_length, causal))
    if query.device.is_host:
        dtype = query.dtype
        query, key, value = (tensor.cast(DType.float32) for tensor in (query, key, value))
        mask = _additive_mask(query, valid_length, causal)
        return ops.flash_attention_cpu(query, key, value, mask, scale).cast(dtype)
    return ops.flash_attention_gpu(query, key, value, scale, causal=causal, valid_length=valid_length)


def has_own(dtype: DType, device: Device | DeviceRef, head_dim: int) -> bool:
    """Whether there is a kernel of this project for such heads."""
    return "max_zimage" in available(dtype, device, (head_dim,))


def sequence_mask(offsets: Tensor, like: Tensor) -> Tensor:
    """float32 [items, 1, length, length]: zero where two tokens of a row are of one sequence, else very negative.

    Args:
        offsets: See `ragged_rotary_attention`.
        like: [items, length, ...] on the device.
    """
    items, length = like.shape[:2]
    position = F.range(0, items * length, 1, out_dim=items * length, dtype=DType.int32, device=like.device)
    begun = F.unsqueeze(position, 1) >= F.unsqueeze(offsets.cast(DType.int32), 0)
    number = F.reshape(F.sum(begun.cast(DType.float32), axis=1), [items, length])
    other = F.reshape(number, [items, 1, length, 1]) != F.reshape(number, [items, 1, 1, length])
    return other.cast(DType.float32) * _MASKED


def _every(qkv: Tensor) -> Tensor:
    """A valid length that hides nothing, uint32 [items]."""
    return F.broadcast_to(F.constant(_EVERY, DType.uint32, device=qkv.device), [qkv.shape[0]])


def _plain_mask(query: Tensor, valid_length: Tensor | None, causal: bool) -> Tensor | None:
    """float32 [batch, 1, length, length]: zero where attended, very negative elsewhere; None for no mask."""
    if not causal and valid_length is None:
        return None
    batch, length = query.shape[0], query.shape[1]
    position = F.range(0, length, 1, out_dim=length, dtype=DType.int32, device=query.device)
    keys, whole = F.reshape(position, [1, 1, 1, length]), (batch, 1, length, length)
    mask = F.broadcast_to(F.constant(0.0, DType.float32, device=query.device), whole)
    if causal:
        later = keys > F.reshape(position, [1, 1, length, 1])
        mask = mask + F.broadcast_to(later.cast(DType.float32) * _MASKED, whole)
    if valid_length is not None:
        beyond = keys >= F.reshape(valid_length.cast(DType.int32), [batch, 1, 1, 1])
        mask = mask + F.broadcast_to(beyond.cast(DType.float32) * _MASKED, whole)
    return mask


def _additive_mask(query: Tensor, valid_length: Tensor | None, causal: bool) -> Tensor:
    """float32 [length, length] or [batch, length, length]: zero where attended, very negative elsewhere."""
    batch, length = query.shape[0], query.shape[1]
    position = F.range(0, length, 1, out_dim=length, dtype=DType.int32, device=DeviceRef.CPU())
    hidden = F.broadcast_to(F.constant(0.0, DType.float32, device=DeviceRef.CPU()), [length, length])
    if causal:
        hidden = (F.unsqueeze(position, 0) > F.unsqueeze(position, 1)).cast(DType.float32) * _MASKED
    if valid_length is not None:
        beyond = F.unsqueeze(position, 0) >= F.unsqueeze(valid_length.cast(DType.int32), 1)  # [batch, length]
        beyond = F.unsqueeze(beyond.cast(DType.float32), 1) * _MASKED
        hidden = F.broadcast_to(beyond, [batch, length, length]) + hidden
    return hidden
