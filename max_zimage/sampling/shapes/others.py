"""Shapes with levels of their own, which no shift moves.

Reference: ComfyUI comfy/samplers.py, linear_quadratic_schedule; RES4LYF sigmas.py, bong_tangent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]

_LINEAR_PART = 0.025
"""What half of the steps take away, evenly, of the noise."""


def linear_quadratic(even: FloatArray, _: float) -> Levels:
    """Half of the steps stay near pure noise; the others fall with the square of their number, tangent to the first."""
    steps = len(even)
    linear = steps // 2
    if linear == 0:
        return np.ones(1)
    index = np.arange(steps)
    bend = (1 - _LINEAR_PART * steps / linear) / (steps - linear) ** 2
    fallen = _LINEAR_PART * index / linear + bend * np.maximum(index - linear, 0) ** 2
    return np.asarray(1 - fallen, np.float64)


def bong_tangent(even: FloatArray, _: float) -> Levels:
    """Two arc tangents, from 1 to a half and on to 0."""
    count = len(even) + 2
    turn = int(0.6 * count)
    slope = 0.2 * 40 / count

    def falling(length: int, middle: int, high: float, low: float) -> Levels:
        places = np.arange(length)
        values = (1 + 2 / np.pi * np.arctan(-slope * (places - middle))) / 2
        share = (values - values[-1]) / (values[0] - values[-1]) if length > 1 else np.ones(1)
        return np.asarray(low + share * (high - low), np.float64)

    first, second = falling(turn, turn, 1.0, 0.5), falling(count - turn, 0, 0.5, 0.0)
    return np.concatenate([first[:-1], second])[:-1] if turn > 1 else np.ones(1)
