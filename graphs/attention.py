"""Attention that never writes the score matrix, on a CPU or a GPU from one call.

Reference: diffusers models/transformers/transformer_z_image.py, ZSingleStreamAttnProcessor
(scaled_dot_product_attention).
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import DeviceRef

from graphs import ops

_MASKED = -1e30  # exp() of it is zero next to any real score; -inf would turn a fully masked block into NaN


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    valid_length: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention.

    Args:
        query: [batch, length, heads, head_dim].
        key: [batch, length, key_value_heads, head_dim]; fewer heads than the query's are shared by groups.
        value: like `key`.
        scale: Factor of the scores, usually 1/sqrt(head_dim).
        valid_length: uint32 [batch]: keys at this position and beyond are not attended. None attends all.
        causal: Whether position i sees positions 0..i only.

    Returns:
        [batch, length, heads, head_dim] in the query's dtype. Rows beyond `valid_length` are unspecified.
    """
    if query.device.is_host:
        dtype = query.dtype
        query, key, value = (tensor.cast(DType.float32) for tensor in (query, key, value))
        mask = _additive_mask(query, valid_length, causal)
        return ops.flash_attention_cpu(query, key, value, mask, scale).cast(dtype)
    return ops.flash_attention_gpu(query, key, value, scale, causal=causal, valid_length=valid_length)


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
