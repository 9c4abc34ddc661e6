"""What a canvas's steps have in common, made on the host: rotary tables and masks.

Rows of different lengths end together, so that a canvas behind them is one block: before a shorter row stands nothing
that anybody sees. Positions count from the longest row's beginning.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, DiffusionGemmaTextRotaryEmbedding,
create_diffusion_decoder_attention_mask; modeling_rope_utils.py, _compute_proportional_rope_parameters.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec, LayerShape, LayerType

Floats = NDArray[np.float32]

_HIDDEN = np.float32(
    -1e30
)  # exp() of it is zero next to any real score; -inf would make NaN of a row that sees nothing


@lru_cache(maxsize=64)
def rotary_table(shape: LayerShape, begin: int, length: int) -> Floats:
    """Cosine and sine of each pair's angle.

    Args:
        shape: Of the layers.
        begin: First position.
        length: How many there are.

    Returns:
        float32 [length, head_dim/2, 2]; pairs that do not turn have the angle 0.
    """
    half = shape.head_dim // 2
    frequencies = np.zeros(half)
    turning = np.arange(shape.rotated)
    frequencies[: shape.rotated] = shape.rope_theta ** (-2.0 * turning / shape.head_dim)
    angles = np.arange(begin, begin + length)[:, None] * frequencies
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    table.setflags(write=False)
    return table


def reading_mask(
    spec: DiffusionGemmaSpec, kind: LayerType, starts: NDArray[np.int64], begin: int, length: int
) -> Floats:
    """What positions that are read see: themselves and those before them, in sliding layers a window of them.

    Args:
        spec: Shape of the model.
        kind: Type of the layers.
        starts: int64 [rows], where each row begins.
        begin: First position that is read.
        length: How many are.

    Returns:
        float32 [rows, length, begin + length], zero where seen.
    """
    query, key = np.arange(begin, begin + length)[:, None], np.arange(begin + length)[None]
    seen = key <= query
    if kind == "sliding_attention":
        seen &= query - key < spec.sliding_window
    return _mask(seen[None] & (key[None] >= starts[:, None, None]))


def canvas_mask(spec: DiffusionGemmaSpec, kind: LayerType, starts: NDArray[np.int64], cached: int) -> Floats:
    """What every position of a canvas sees: the canvas, and what was read; in sliding layers the last of that.

    All positions see the same window - 1 tokens, the first of the canvas no other than the last.

    Args:
        spec: Shape of the model.
        kind: Type of the layers.
        starts: int64 [rows], where each row begins.
        cached: Positions that were read.

    Returns:
        float32 [rows, canvas_length, cached + canvas_length], zero where seen; every position sees the same.
    """
    first = np.maximum(starts, cached - (spec.sliding_window - 1)) if kind == "sliding_attention" else starts
    seen = np.arange(cached + spec.canvas_length)[None, None] >= first[:, None, None]
    return _mask(np.repeat(seen, spec.canvas_length, axis=1))


def _mask(seen: NDArray[np.bool_]) -> Floats:
    return np.where(seen, np.float32(0), _HIDDEN)
