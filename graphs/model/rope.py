"""Rotary position embedding, applied: the tables come from the host, built in float64 and kept in float32.

Element i of a head is rotated with element i + head_dim/2. So does Qwen3; Z-Image's transformer rotates adjacent
elements, which loading brings apart (see `max_zimage.checkpoint.names`), because two strided halves of a pair cost
three passes over memory and two contiguous halves one. Done in float32, returned in the input's dtype.

Reference: diffusers models/transformers/transformer_z_image.py, apply_rotary_emb; transformers
models/qwen3/modeling_qwen3.py, apply_rotary_pos_emb.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate pairs (i, i + head_dim/2) of the last axis.

    Args:
        x: [batch, length, heads, head_dim].
        table: float32 [batch or 1, length, head_dim/2, 2], cosine and sine of each pair's angle.

    Returns:
        Like `x`.
    """
    half = int(x.shape[-1]) // 2
    first, second = F.split(x.cast(DType.float32), [half, half], axis=-1)
    cosine, sine = (F.unsqueeze(table[:, :, :, i], 2) for i in (0, 1))  # [batch or 1, length, 1, head_dim/2]
    rotated = F.concat([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.cast(x.dtype)
