"""The only file that names Mojo symbols: one op a function.

Two attention kernels of MAX's library are wrapped. Which one a graph may use is decided in `graphs.attention`; a GPU op
that reaches a CPU graph costs minutes and more than ten gigabytes before it fails.
"""

from __future__ import annotations

from max.driver import CPU
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.nn.attention.mask_config import MHAMaskVariant
from max.nn.kernels import flash_attention_gpu as _flash_attention_gpu

_flash_attention_gpu_functional = F.functional(_flash_attention_gpu)


def flash_attention_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(query keyᵀ · scale + mask) value, block by block, on a CPU.

    Scores are accumulated in the dtype of the arguments, so callers pass float32.

    Args:
        query: float32 [batch, length, heads, head_dim].
        key: float32 [batch, length, key_value_heads, head_dim]; `key_value_heads` divides `heads`.
        value: like `key`.
        mask: float32, added to the scaled scores; [length, length], [batch, length, length] or [batch, heads, length,
            length]. It is read through a fused load: a mask computed from positions is never written to memory.
        scale: Factor of the scores, usually 1/sqrt(head_dim).

    Returns:
        float32 [batch, length, heads, head_dim].
    """
    factor = F.constant(scale, DType.float32, device=CPU())
    return F.custom(
        "mo.composite.masked_flash_attention_cpu",
        device=query.device,
        values=[query, key, value, mask, factor],
        out_types=[query.type],
    )[0]


def flash_attention_gpu(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool, valid_length: Tensor | None
) -> Tensor:
    """softmax(query keyᵀ · scale) value with MAX's GPU kernel; never put it on a CPU graph.

    Args:
        query: [batch, length, heads, head_dim].
        key: [batch, length, key_value_heads, head_dim].
        value: like `key`.
        scale: Factor of the scores.
        causal: Whether position i sees positions 0..i only.
        valid_length: uint32 [batch], the number of leading positions that exist; None where all do.

    Returns:
        [batch, length, heads, head_dim]; rows beyond the valid length are unspecified.
    """
    variant = MHAMaskVariant.CAUSAL_MASK if causal else MHAMaskVariant.NULL_MASK
    if valid_length is None:
        return _flash_attention_gpu_functional(query, key, value, mask_variant=variant, scale=scale)
    return _flash_attention_gpu_functional(
        query, key, value, mask_variant=variant, scale=scale, valid_length=valid_length
    )
