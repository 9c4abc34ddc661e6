"""Dynamic position extrapolation (DyPE): rotary tables of pictures beyond the size that a model was trained at.

A large picture has positions that the model never saw. Frequencies of the row and the column axis are made smaller, so
that positions turn no further than they did in training, and the more so the more noise there is: what a picture is as
a whole is decided early, its details late. The frame axis, on which captions stand, stays as it is.

Of an axis of width d with base θ and L positions in training, for pair i, at noise level t:

    base_i = θ^(-2i/d)      linear_i = base_i / local      ntk_i = (θ · whole^(d/(d-2)))^(-2i/d)
    k = scale · t^exponent
    corr(r) = d · ln(L / (2πr)) / (2 · ln θ), the pair that turns r times in training
    f = base up to the pairs that turn 16^k to 2^k times, ntk up to those of 1.25^k to 0.75^k, linear behind

`local` is how many times longer than in training the axis is, `whole` the larger of the two; neither is below 1. Where
`whole` is 1 nothing changes.

| method | scales | cosine and sine times | k |
|---|---|---|---|
| vision_yarn | each axis its own | 1 + 0.1 · ln(whole) · min(1, t / start_sigma)^exponent | as above |
| yarn | whole for both | 1 + 0.1 · ln(whole) / √whole | as above |
| ntk | base θ · max(1, whole^(d/(d-2)·k)) | 1 | as above |

Where no pair turns 2^k times in training, as with a large scale, the range between two kinds of pairs is empty, and one
follows the other at its lower end. The reference divides by a negative width there, which turns the mixture around:
with such a scale nothing would be extrapolated at all.

Reference: Issachar et al., DyPE: Dynamic Position Extrapolation for Ultra High Resolution Diffusion, 2025;
ComfyUI-DyPE src/rope.py and src/base.py; llm-dit src/llm_dit/utils/vision_yarn.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.positions import PIXELS_PER_TOKEN, FloatArray, RopeSpec, axis_frequencies, turns

Method = Literal["vision_yarn", "yarn", "ntk"]
Frequencies = npt.NDArray[np.float64]

_BASE_UNTIL, _NTK_UNTIL = (16.0, 2.0), (1.25, 0.75)  # turns
_LEAST_WIDTH = 0.001  # of a range, in pairs


@dataclass(frozen=True, kw_only=True)
class Dype:
    """How positions are extrapolated.

    Attributes:
        method: How frequencies are chosen.
        scale: How strongly they move with the noise level, above 0.
        exponent: How soon that ends as noise is taken away, at least 0.
        start_sigma: Noise level above which `vision_yarn` has its full magnitude, in (0, 1].
        base_resolution: Side of the pictures that the model was trained at, in pixels.
    """

    method: Method
    scale: float = 2.0
    exponent: float = 2.0
    start_sigma: float = 1.0
    base_resolution: int = 1024

    @property
    def base(self) -> int:
        """Tokens along a side in training."""
        return self.base_resolution // PIXELS_PER_TOKEN

    def growth(self, tokens: int) -> float:
        """How many times longer than in training a side is, at least 1."""
        return max(1.0, tokens / self.base)

    def changes(self, rows: int, columns: int) -> bool:
        """Whether a picture of so many tokens has other tables than without."""
        return max(rows, columns) > self.base

    def strength(self, sigma: float) -> float:
        """How strongly frequencies are moved at a noise level: k above."""
        return float(self.scale * sigma**self.exponent)


def axis_tables(
    spec: RopeSpec, dype: Dype, rows: int, columns: int, sigmas: npt.NDArray[np.float32]
) -> tuple[FloatArray, FloatArray]:
    """Make the tables of the row and of the column axis for every evaluation.

    Args:
        spec: The transformer's rotary embedding.
        dype: How it is extrapolated.
        rows: Image height in tokens.
        columns: Image width in tokens.
        sigmas: float32 [evaluations], the noise level of each.

    Returns:
        float32 [evaluations, rows, axes_dims[1] / 2, 2] and [evaluations, columns, axes_dims[2] / 2, 2]: cosine and
        sine of every position, times the magnitude. Position 0 is that of captions and pad tokens too.
    """
    whole = dype.growth(max(rows, columns))

    def table(axis: int, length: int, sigma: float) -> FloatArray:
        dim, local = spec.axes_dims[axis], dype.growth(length)
        found = frequencies(dype, dim=dim, theta=spec.theta, local=local, whole=whole, sigma=sigma)
        return turns(found, length, magnitude(dype, whole, sigma))

    levels = [float(sigma) for sigma in sigmas]
    first, second = (
        np.stack([table(axis, length, sigma) for sigma in levels]) for axis, length in ((1, rows), (2, columns))
    )
    return first, second


def frequencies(dype: Dype, *, dim: int, theta: float, local: float, whole: float, sigma: float) -> Frequencies:
    """The angle that each pair of an axis turns by from one position to the next.

    Args:
        dype: How positions are extrapolated.
        dim: Width of the axis in a head.
        theta: Base of the frequencies.
        local: How many times longer than in training the axis is.
        whole: The same of the longer axis.
        sigma: Noise level, in [0, 1].

    Returns:
        float64 [dim / 2].
    """
    base = axis_frequencies(dim, theta)
    if whole <= 1:
        return base
    # An axis of one pair has frequency 1 whatever the base.
    growth, strength = whole ** (dim / max(dim - 2, 1)), dype.strength(sigma)
    if dype.method == "ntk":
        return axis_frequencies(dim, theta * max(1.0, growth**strength))

    linear, ntk = base / (whole if dype.method == "yarn" else local), axis_frequencies(dim, theta * growth)
    from_ntk, from_base = (
        _falling([_pair_of(turned**strength, dim, theta, dype.base) for turned in ends], dim)
        for ends in (_NTK_UNTIL, _BASE_UNTIL)
    )
    moved = linear * (1 - from_ntk) + ntk * from_ntk
    return moved * (1 - from_base) + base * from_base


def magnitude(dype: Dype, whole: float, sigma: float) -> float:
    """What cosine and sine are multiplied by.

    Args:
        dype: How positions are extrapolated.
        whole: How many times longer than in training the longer axis is.
        sigma: Noise level, in [0, 1].
    """
    if dype.method == "ntk" or whole <= 1:
        return 1.0
    if dype.method == "yarn":
        return 1 + 0.1 * math.log(whole) / math.sqrt(whole)
    level = min(1.0, sigma / dype.start_sigma)
    return float(1 + 0.1 * math.log(whole) * level**dype.exponent)


def _pair_of(turned: float, dim: int, theta: float, length: int) -> float:
    """Which pair turns so many times along so many positions, as a number between pairs."""
    return dim * math.log(length / (2 * math.pi * turned)) / (2 * math.log(theta))


def _falling(ends: Sequence[float], dim: int) -> Frequencies:
    """1 up to one pair, 0 from another one on, and a straight line between; float64 [dim / 2]."""
    low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), dim // 2)
    width = max(high - low, _LEAST_WIDTH)
    return np.asarray(1 - np.clip((np.arange(dim // 2) - low) / width, 0, 1), np.float64)
