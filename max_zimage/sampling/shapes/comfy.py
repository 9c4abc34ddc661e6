"""ComfyUI's schedulers, over its table of 1,000 shifted levels, the lowest one first.

`simple` and `ddim_uniform` and the two of the beta distribution pick from the table; `normal` and `sgm_uniform` shift
what is spread evenly between its ends, whose levels are shifted already; the others go from the highest level to the
lowest by a formula.

Reference: ComfyUI comfy/samplers.py (simple_scheduler, ddim_scheduler, normal_scheduler, beta_scheduler,
kl_optimal_scheduler), comfy/k_diffusion/sampling.py (get_sigmas_karras, get_sigmas_exponential),
comfy/model_sampling.py (ModelSamplingDiscreteFlow).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.shapes.beta_function import quantiles
from max_zimage.sampling.shapes.diffusers import RHO

FloatArray = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]

_TABLE = 1000


def _shifted(levels: Levels, shift: float) -> Levels:
    return np.asarray(shift * levels / (1 + (shift - 1) * levels), np.float64)


def _table(shift: float) -> Levels:
    return _shifted(np.arange(1, _TABLE + 1) / _TABLE, shift)


def simple(even: FloatArray, shift: float) -> Levels:
    """Every so-manieth level from the top."""
    table, steps = _table(shift), len(even)
    return np.asarray([table[-1 - int(index * _TABLE / steps)] for index in range(steps)])


def normal(even: FloatArray, shift: float) -> Levels:
    """Evenly spaced between the table's ends, and shifted again."""
    table = _table(shift)
    return _shifted(np.linspace(table[-1], table[0], len(even)), shift)


def sgm_uniform(even: FloatArray, shift: float) -> Levels:
    """As `normal`, with one level more that is left out: the lowest."""
    table = _table(shift)
    return _shifted(np.linspace(table[-1], table[0], len(even) + 1)[:-1], shift)


def ddim_uniform(even: FloatArray, shift: float) -> Levels:
    """Every so-manieth level from the bottom; may be more than was asked for, and does not begin at 1."""
    table = _table(shift)
    return np.asarray(table[1 :: max(_TABLE // len(even), 1)][::-1])


def _at_quantiles(steps: int, shift: float, alpha: float, beta: float) -> Levels:
    shares = quantiles(1 - np.linspace(0, 1, steps, endpoint=False), alpha, beta)
    places = np.rint(shares * (_TABLE - 1)).astype(int)
    # The same level twice would be a step without a length.
    is_new = np.concatenate([[True], places[1:] != places[:-1]])
    return np.asarray(_table(shift)[places[is_new]])


def beta(even: FloatArray, shift: float) -> Levels:
    """At the quantiles of a beta distribution; fewer than were asked for where two fall on one level."""
    return _at_quantiles(len(even), shift, 0.6, 0.6)


def beta57(even: FloatArray, shift: float) -> Levels:
    """As `beta`, with more of the steps at low levels; RES4LYF's."""
    return _at_quantiles(len(even), shift, 0.5, 0.7)


def karras(even: FloatArray, shift: float) -> Levels:
    """Evenly spaced in the seventh root of the level, down to the table's lowest."""
    low, high = _table(shift)[0] ** (1 / RHO), 1.0
    return np.asarray((high + np.linspace(0, 1, len(even)) * (low - high)) ** RHO, np.float64)


def exponential(even: FloatArray, shift: float) -> Levels:
    """Evenly spaced in the logarithm of the level, down to the table's lowest."""
    return np.exp(np.linspace(0, math.log(_table(shift)[0]), len(even)))


def kl_optimal(even: FloatArray, shift: float) -> Levels:
    """Evenly spaced in the arc tangent of the level, down to the table's lowest ("Align Your Steps", theorem 3.1)."""
    return np.tan(np.linspace(math.atan(1.0), math.atan(_table(shift)[0]), len(even)))
