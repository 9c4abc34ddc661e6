"""What a request has done to the text encoder's features before the transformer sees them.

Too many rows become fewer (`max_zimage.text.long_prompts`); then seed variance, noise on a share of the numbers, so
that a distilled model's pictures of one prompt differ more.

    feature + strength · std(all features of the prompt) · u,  u uniform in [-1, 1], where v is below share

u and v, a number in [0, 1), are drawn from the picture's own seed, other streams of it than its noise.

Reference: InvokeAI invokeai/app/invocations/z_image_seed_variance_enhancer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from max_zimage.request.modes import REFUSE
from max_zimage.sampling.noise import uniform
from max_zimage.text.long_prompts import compressed

FloatArray = npt.NDArray[np.float32]

_STREAM = 2**32


@dataclass(frozen=True, kw_only=True)
class FeatureChange:
    """What is done to the features of one caption.

    Attributes:
        rows: How many there may be.
        mode: How they become as many.
        strength: Of seed variance; 0 is none.
        share: Of the numbers that it changes.
        seed: Of the picture; None where the strength is 0, so that pictures share a caption.
    """

    rows: int
    mode: str = REFUSE
    strength: float = 0.0
    share: float = 0.0
    seed: int | None = None

    def is_needed(self, tokens: int) -> bool:
        """Whether features of so many tokens are changed at all."""
        return tokens > self.rows or self.seed is not None

    def __call__(self, features: FloatArray) -> FloatArray:
        """Features, float32 [tokens, caption_dim], as the transformer gets them: [min(tokens, rows), caption_dim]."""
        few = compressed(self.mode, features, self.rows)
        if self.seed is None:
            return few
        noise = 2 * uniform(self.seed, few.shape, _STREAM) - 1
        is_changed = uniform(self.seed, few.shape, _STREAM + 1) < self.share
        spread = few.std(dtype=np.float64, ddof=1)
        return np.asarray(few + np.where(is_changed, self.strength * spread * noise, 0), np.float32)
