"""The shapes that diffusers' scheduler has besides its even spread: all go from the first of its levels to the last.

Reference: diffusers schedulers/scheduling_flow_match_euler_discrete.py, _convert_to_karras, _convert_to_exponential,
_convert_to_beta; use_karras_sigmas and so on of a checkpoint's scheduler_config.json.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.shapes.beta_function import quantiles

FloatArray = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]

RHO = 7.0
"""How far Karras' spread leans towards the low levels."""


def karras(even: FloatArray, _: float) -> Levels:
    """Evenly spaced in the seventh root of the level."""
    low, high = float(even[-1]) ** (1 / RHO), float(even[0]) ** (1 / RHO)
    return np.asarray((high + np.linspace(0, 1, len(even)) * (low - high)) ** RHO, np.float64)


def exponential(even: FloatArray, _: float) -> Levels:
    """Evenly spaced in the logarithm of the level."""
    return np.exp(np.linspace(math.log(float(even[0])), math.log(float(even[-1])), len(even)))


def beta(even: FloatArray, _: float) -> Levels:
    """At the quantiles of a beta distribution, dense at both ends."""
    low, high = float(even[-1]), float(even[0])
    return low + quantiles(1 - np.linspace(0, 1, len(even)), 0.6, 0.6) * (high - low)
