"""The noise that a picture begins with, in the ways that a request may ask for.

Picture k of a request has the seed + k, and the variation seed + k: each can be made again alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.noise import image_seed, standard_normal
from max_zimage.sampling.torch_noise import torch_normal

FloatArray = npt.NDArray[np.float32]
Shape = tuple[int, int, int]

_STARTING, _POSTERIOR = 0, 1
"""The streams of a seed that starting noise and the autoencoder's sample are drawn from, in a run's first part."""


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Where a request's noise comes from.

    Attributes:
        kind: "philox", see `max_zimage.sampling.noise`, or "torch", see `max_zimage.sampling.torch_noise`.
        seed: Of the first picture.
        variation_seed: Of the noise that is mixed into the first picture's, or None.
        variation_strength: How far to go there, from 0 to 1.
        from_image: Whether the autoencoder samples an image: torch's generator draws for that first, as diffusers does.
        leg: Which part of the run it is for, from 0. Each has streams of its own, 2^40 after those of the one before.
        drawn: Height and width of what torch's generator has drawn in the parts before, one after the other.
    """

    kind: Literal["philox", "torch"] = "philox"
    seed: int = 0
    variation_seed: int | None = None
    variation_strength: float = 0.0
    from_image: bool = False
    leg: int = 0
    drawn: tuple[tuple[int, int], ...] = ()

    def starting(self, pictures: int, shape: Shape) -> FloatArray:
        """Starting noise, float32 [pictures, channels, height/8, width/8].

        Args:
            pictures: How many.
            shape: Channels, height/8, width/8.
        """
        return np.stack([self._of(index, shape) for index in range(pictures)])

    def posterior(self, pictures: int, shape: Shape) -> FloatArray:
        """What chooses among the latents an image may stand for, like `starting`."""
        seeds = [image_seed(self.seed, index) for index in range(pictures)]
        if self.kind == "torch":
            return np.stack([torch_normal(seed, shape, self._before(shape)) for seed in seeds])
        return np.stack([standard_normal(seed, shape, stream_of(_POSTERIOR, self.leg)) for seed in seeds])

    def _of(self, index: int, shape: Shape) -> FloatArray:
        own = self._drawn(image_seed(self.seed, index), shape)
        if self.variation_seed is None or not self.variation_strength:
            return own
        return between(own, self._drawn(image_seed(self.variation_seed, index), shape), self.variation_strength)

    def _drawn(self, seed: int, shape: Shape) -> FloatArray:
        if self.kind == "torch":
            sampled = [math.prod(shape)] if self.from_image else []
            return torch_normal(seed, shape, self._before(shape) + sampled)
        return standard_normal(seed, shape, stream_of(_STARTING, self.leg))

    def _before(self, shape: Shape) -> list[int]:
        """Values that torch's generator has drawn in the parts before, result by result."""
        return [shape[0] * height * width for height, width in self.drawn]


def stream_of(stream: int, leg: int) -> int:
    """The stream of a picture's seed that stands for another in some part of the run.

    >>> stream_of(1, 0), stream_of(1, 2) == 2 * 2**40 + 1
    (1, True)
    """
    return (leg << 40) + stream


def between(one: FloatArray, other: FloatArray, share: float) -> FloatArray:
    """Spherical interpolation: normal noise that is the first one at 0, the other one at 1.

    sin((1 - share) a) / sin a · one + sin(share a) / sin a · other, with a the angle between the two as vectors; in
    float64, rounded once.
    """
    first, second = one.astype(np.float64), other.astype(np.float64)
    cosine = np.vdot(first, second) / (np.linalg.norm(first) * np.linalg.norm(second))
    angle = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
    if np.sin(angle) < 1e-6:  # the same noise, or its opposite: there is no arc between
        return ((1 - share) * first + share * second).astype(np.float32)
    mixed = (np.sin((1 - share) * angle) * first + np.sin(share * angle) * second) / np.sin(angle)
    return np.asarray(mixed, np.float32)
