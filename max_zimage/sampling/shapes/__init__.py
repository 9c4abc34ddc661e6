"""Sigma shapes: how the noise levels of a request are spread between noise and picture.

One table, name to function. A function gets the levels that an even spread has after the shift, float32 [N], and the
shift, and returns N levels in float64, from high to low and without the final 0. `linear` is the even spread itself.

Formulas are named as where they come from: diffusers' linear, karras, exponential and beta; ComfyUI's under their own
names, with `comfy_` before those that mean something else there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.names import DEFAULT_SHAPE, SIGMA_SHAPES
from max_zimage.sampling.shapes import comfy, diffusers, others

FloatArray = npt.NDArray[np.float32]
Shape = Callable[[FloatArray, float], npt.NDArray[np.float64]]

SHAPES: Mapping[str, Shape] = {
    DEFAULT_SHAPE: lambda even, _: even.astype(np.float64),
    "karras": diffusers.karras,
    "exponential": diffusers.exponential,
    "beta": diffusers.beta,
    "simple": comfy.simple,
    "normal": comfy.normal,
    "sgm_uniform": comfy.sgm_uniform,
    "ddim_uniform": comfy.ddim_uniform,
    "beta57": comfy.beta57,
    "kl_optimal": comfy.kl_optimal,
    "linear_quadratic": others.linear_quadratic,
    "bong_tangent": others.bong_tangent,
    "comfy_beta": comfy.beta,
    "comfy_karras": comfy.karras,
    "comfy_exponential": comfy.exponential,
}

SCALES_NOISE = frozenset({"ddim_uniform"})
"""Shapes that do not begin at pure noise: what a seed draws is multiplied by the first level, as ComfyUI does it."""


def shaped(name: str, even: FloatArray, shift: float) -> FloatArray:
    """Spread noise levels.

    Args:
        name: One of `SIGMA_SHAPES`.
        even: float32 [N], the levels of an even spread after the shift.
        shift: The shift.

    Returns:
        float32 [N].

    Raises:
        ValueError: If there is no such shape, or it has no N levels for these N steps; says which N it has.
    """
    if name not in SHAPES:
        raise ValueError(f"must be one of {', '.join(SIGMA_SHAPES)}, got {name!r}")
    steps = len(even)
    levels = SHAPES[name](even, shift)
    if len(levels) != steps:
        near = [count for gap in range(1, 5) for count in (steps + gap, steps - gap)]
        halves = [steps >> times for times in range(1, steps.bit_length())]  # far below, every shape has all levels
        nearest = (count for count in (*near, *halves) if _fits(name, count))
        raise ValueError(
            f"{name} has {len(levels)} levels for {steps} steps; ask for {next(nearest, 1)} steps or take another shape"
        )
    return levels.astype(np.float32)


def _fits(name: str, steps: int) -> bool:
    return steps > 0 and len(SHAPES[name](np.ones(steps, np.float32), 1.0)) == steps
