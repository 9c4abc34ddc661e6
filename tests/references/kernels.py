"""What the ops of `kernels` compute, with torch: in float64, or as plain operations in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import conv2d, gelu, group_norm, scaled_dot_product_attention, silu


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[items, length, inputs], [outputs, inputs] -> [items, length, outputs]."""
    return x @ weight.T


def gated_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The weight's upper half gates what its lower half makes."""
    gate, up = (x @ weight.T).chunk(2, dim=-1)
    return silu(gate) * up


def gelu_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same with another gate."""
    gate, up = (x @ weight.T).chunk(2, dim=-1)
    return gelu(gate, approximate="tanh") * up


def experts(
    x: torch.Tensor,
    scores: torch.Tensor,
    scales: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    each: int,
) -> torch.Tensor:
    """Arguments as of `graphs.text_ops.experts`, weights unpacked, [experts, 2 width, hidden] and [.., hidden, width].

    Experts are chosen by scores as they are given, of equal ones the first; all that follows is in x's dtype.
    """
    found = torch.argsort(scores, dim=-1, descending=True, stable=True)[..., :each]
    shares = torch.softmax(scores.gather(-1, found).to(_wide(x).dtype), dim=-1) * scales[found]
    out = torch.zeros_like(_wide(x))
    for place in range(each):
        for expert in range(len(gate_up)):
            made = gelu_linear(x, gate_up[expert]) @ down[expert].T
            out += torch.where(found[..., place] == expert, shares[..., place], 0).unsqueeze(-1) * made
    return out.to(x.dtype)


def cached_attention(
    qkv: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    rope: torch.Tensor,
    mask: torch.Tensor,
    past: tuple[torch.Tensor, torch.Tensor],
    heads: tuple[int, int],
    unit_values: bool,
    scale: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Arguments and results as of `graphs.text_ops.cached_attention`; norms and rotation in float32 at least."""
    count, shared = heads
    query, key, *values = qkv.split([count, *[shared] * ((qkv.shape[2] - count) // shared)], dim=2)
    value = values[0] if values else key
    value = normed(value, torch.ones(()).to(qkv.dtype), epsilon) if unit_values else value
    table = rope.unsqueeze(0)
    query, key = (
        rotated(normed(each, weight, epsilon), table) for each, weight in ((query, query_weight), (key, key_weight))
    )
    keys, all_values = (torch.cat(each, dim=1).transpose(1, 2) for each in zip(past, (key, value), strict=True))
    mixed = scaled_dot_product_attention(
        query.transpose(1, 2), keys, all_values, attn_mask=mask.unsqueeze(1).to(qkv.dtype), scale=scale, enable_gqa=True
    )
    return mixed.transpose(1, 2), key, value


def rotary_attention(
    qkv: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    rope: torch.Tensor,
    valid_length: list[int] | None,
    heads: int,
    causal: bool,
    epsilon: float,
) -> torch.Tensor:
    """Arguments as of `graphs.ops.attention`, None where all is valid; norms and rotation in float32 at least."""
    shared = (qkv.shape[2] - heads) // 2
    query, key, value = qkv.split([heads, shared, shared], dim=2)
    query, key = (
        rotated(normed(numbers, weight, epsilon), rope)
        for numbers, weight in ((query, query_weight), (key, key_weight))
    )
    seen = None if valid_length is None and not causal else _seen(qkv.shape[1], valid_length or [qkv.shape[1]], causal)
    query, key, value = (numbers.transpose(1, 2) for numbers in (query, key, value))
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=heads != shared)
    return mixed.transpose(1, 2)


def attention(qkv: torch.Tensor, valid_length: list[int], heads: int) -> torch.Tensor:
    """[items, length, 3 heads, head_dim] -> [items, length, heads, head_dim]."""
    query, key, value = (numbers.transpose(1, 2) for numbers in qkv.split([heads] * 3, dim=2))
    seen = _seen(qkv.shape[1], valid_length, causal=False)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)


def resnet_block(x: torch.Tensor, weights: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
    """A residual block of the autoencoder: [items, channels, rows, columns], to channels last."""
    hidden = x
    for index in "12":
        scale, offset = (weights[f"norm{index}.{kind}"] for kind in ("weight", "bias"))
        normed = silu(group_norm(hidden, groups, scale, offset, eps=1e-6))
        hidden = conv2d(normed, weights[f"conv{index}.weight"], weights[f"conv{index}.bias"], padding=1)
    return (x + hidden).permute(0, 2, 3, 1)


def _seen(length: int, valid_length: list[int], causal: bool) -> torch.Tensor:
    """Which key a query sees, [items, 1, length, length]."""
    position = torch.arange(length)
    seen = (position < torch.tensor(valid_length)[:, None, None]).expand(-1, length, length)
    if causal:
        seen = seen & (position <= position[:, None])
    # A query that sees nothing would be NaN; its row is unspecified.
    return (seen | ~seen.any(-1, keepdim=True)).unsqueeze(1)


def _wide(numbers: torch.Tensor) -> torch.Tensor:
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def normed(numbers: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm over the last axis, in float32 at least."""
    wide = _wide(numbers)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(numbers.dtype) * weight


def rotated(numbers: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """RoPE of [items, length, heads, head_dim], in float32 at least; element i turns with i + head_dim/2."""
    first, second = _wide(numbers).chunk(2, dim=-1)
    cosine, sine = (rope[:, :, None, :, i].to(first.dtype) for i in (0, 1))
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(numbers.dtype)
