"""Guidance variants in numpy, float64: what `max_zimage.graphs.guiders.variants` computes, from its formulas alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.guidance import Variant

Array = npt.NDArray[np.floating]


@dataclass
class NumpyGuide:
    """Guides one picture; remembers what APG's momentum needs."""

    variant: Variant
    running: Array = field(default_factory=lambda: np.zeros(1))

    def __call__(self, positive: Array, negative: Array, scale: float, added: Array | float, index: int) -> Array:
        """The prediction.

        Args:
            positive: The positive branch.
            negative: The negative branch; not looked at where `scale` is 0.
            scale: Guidance scale.
            added: What other branches add.
            index: The evaluation.
        """
        c, u, variant = positive.astype(np.float64), negative.astype(np.float64), self.variant
        found = c + scale * (c - u) if scale else c
        if scale and variant.name == "cfg_zero_star":
            star = (c * u).sum() / ((u * u).sum() + 1e-8) * u
            found = c + scale * (c - star)
        if scale and variant.name == "apg":
            difference = self.running = (c - u) + variant.momentum * self.running
            if variant.norm_threshold:
                difference = difference * min(1.0, variant.norm_threshold / np.linalg.norm(difference))
            unit = c / np.linalg.norm(c)
            parallel = (difference * unit).sum() * unit
            found = u + (1 + scale) * (difference - parallel + variant.eta * parallel)
        found = found + added
        if variant.rescale and (scale or np.any(added)):
            found = found * (variant.rescale * c.std() / found.std() + 1 - variant.rescale)
        is_guided = scale or np.any(added)
        return found * (0.0 if variant.zero_init and index == 0 and is_guided else 1.0)
