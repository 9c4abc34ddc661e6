"""More text features than the transformer has positions for, made fewer.

A prompt beyond the limit is encoded as a whole, and its features [tokens, caption_dim] become as many rows as there may
be, in float32:

    truncate        the first rows
    interpolate     rows at even distances, the first and the last included, between which it is linear
    pool            means over even parts
    attention_pool  means over even parts, weighted by how little a row resembles its two neighbours on either side

What comes of attention_pool differs from llm-dit, whose divisor for inner rows is 1 in place of 4 by a slip that makes
its weights far too sharp.

Reference: llm-dit src/llm_dit/utils/long_prompt.py; torch interpolate (align_corners) and adaptive_avg_pool1d.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_NEIGHBOURS = (1, 2)
_FLOOR = 0.1


def compressed(mode: str, features: FloatArray, rows: int) -> FloatArray:
    """Features in at most so many rows; those that are few enough as they are.

    Args:
        mode: One of `LONG_PROMPT_MODES`.
        features: float32 [tokens, caption_dim].
        rows: How many there may be.

    Returns:
        float32 [min(tokens, rows), caption_dim].

    Raises:
        ValueError: If the mode is refuse, or none, and there are more.
    """
    if len(features) <= rows:
        return features
    if mode not in _MODES:
        raise ValueError(f"features of {len(features)} rows must become {rows}, and {mode!r} is no way to do it")
    return np.ascontiguousarray(_MODES[mode](features, rows), np.float32)


def truncate(features: FloatArray, rows: int) -> FloatArray:
    """The first rows."""
    return features[:rows]


def interpolate(features: FloatArray, rows: int) -> FloatArray:
    """Rows at even distances."""
    places = np.arange(rows) * ((len(features) - 1) / (rows - 1)) if rows > 1 else np.zeros(1)
    below = np.minimum(places.astype(int), len(features) - 2)
    share = (places - below)[:, None]
    return np.asarray(features[below] * (1 - share) + features[below + 1] * share, np.float32)


def pool(features: FloatArray, rows: int) -> FloatArray:
    """Means over even parts, which share a row where they do not come out even."""
    count = len(features)
    parts = [(at * count // rows, -(-(at + 1) * count // rows)) for at in range(rows)]
    return np.stack([features[begin:end].mean(axis=0, dtype=np.float64) for begin, end in parts]).astype(np.float32)


def attention_pool(features: FloatArray, rows: int, *, as_shipped: bool = False) -> FloatArray:
    """Weighted means over even parts.

    Args:
        features: float32 [tokens, caption_dim].
        rows: How many there will be.
        as_shipped: Whether to divide as llm-dit does.
    """
    count = len(features)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    alike, known = np.zeros(count), np.zeros(count)
    for distance in _NEIGHBOURS:
        products = (unit[distance:] * unit[:-distance]).sum(axis=1)
        for side in (slice(distance, None), slice(None, -distance)):
            alike[side] += products
            known[side] += 1
    if as_shipped:
        known = np.ones(count)
        known[[0, -1]], known[[1, -2]] = 3, 4
    importance = 1 - alike / known
    importance = importance - importance.min() + _FLOOR
    part = np.minimum((np.arange(count) / np.float32(count / rows)).astype(int), rows - 1)
    weights = np.exp(importance - np.array([importance[part == at].max() for at in range(rows)])[part])
    totals = np.maximum(np.bincount(part, weights, rows), 1e-8)
    made = np.zeros((rows, features.shape[1]))
    np.add.at(made, part, features * (weights / totals[part])[:, None])
    return made.astype(np.float32)


_MODES: Mapping[str, Callable[[FloatArray, int], FloatArray]] = {
    "truncate": truncate,
    "interpolate": interpolate,
    "pool": pool,
    "attention_pool": attention_pool,
}
