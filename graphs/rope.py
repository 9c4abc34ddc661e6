"""Rotary position embedding, applied: the tables come from the host, built in float64 and kept in float32.

Two pairings exist. Z-Image's transformer rotates adjacent elements (interleaved), Qwen3 rotates element i with element
i + head_dim/2 (halves). Both work in float32 and return the input's dtype.

Reference: diffusers models/transformers/transformer_z_image.py, apply_rotary_emb; transformers
models/qwen3/modeling_qwen3.py, apply_rotary_pos_emb.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor


def rotate_interleaved(x: Tensor, table: Tensor) -> Tensor:
    """Rotate pairs (2i, 2i+1) of the last axis.

    Args:
        x: [batch, length, heads, head_dim].
        table: float32 [batch, length, head_dim/2, 2], cosine and sine of each pair's angle.

    Returns:
        Like `x`.
    """
    pairs = F.as_interleaved_complex(x.cast(DType.float32))
    rotated = F.complex_mul(pairs, F.unsqueeze(table, 2))
    return F.reshape(rotated, x.shape).cast(x.dtype)


def rotate_halves(x: Tensor, table: Tensor) -> Tensor:
    """Rotate pairs (i, i + head_dim/2) of the last axis.

    Args:
        x: [batch, length, heads, head_dim].
        table: float32 [length, head_dim/2, 2], cosine and sine of each pair's angle.

    Returns:
        Like `x`.
    """
    half = int(x.shape[-1]) // 2
    first, second = F.split(x.cast(DType.float32), [half, half], axis=-1)
    cosine, sine = (F.unsqueeze(F.unsqueeze(table[:, :, i], 0), 2) for i in (0, 1))  # [1, length, 1, head_dim/2]
    rotated = F.concat([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.cast(x.dtype)
