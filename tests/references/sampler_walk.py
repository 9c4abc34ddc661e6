"""A sampler's matrices in numpy, with the noise of each picture's own seed."""

from __future__ import annotations

import numpy as np

from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.noise import standard_normal
from tests.references.diffusers_runs import Call, FloatArray, packed

SEED = 11
"""Of the first picture; picture k has the seed SEED + k."""


class SamplerWalk:
    """What a sampler remembers on its way.

    Args:
        plan: Its evaluations.
        call: The request.
        latents: What the way begins with, float32 [pictures, image tokens, 4 · channels].
    """

    def __init__(self, plan: Evaluations, call: Call, latents: FloatArray) -> None:
        self._plan, self._shape = plan, (latents.shape[-1] // 4, call.height // 8, call.width // 8)
        self._slots = np.zeros((plan.slots, *latents.shape), np.float32)

    def update(self, index: int, latents: FloatArray, prediction: FloatArray) -> FloatArray:
        """The latents behind an evaluation, from those before it and the guided prediction, both packed."""
        if self._plan.noisy[index]:
            stream = int(self._plan.streams[index])
            drawn = [standard_normal(SEED + picture, self._shape, stream) for picture in range(len(latents))]
            self._slots[-1] = packed(np.stack(drawn))
        seen = np.stack([latents, prediction, *self._slots])
        latents, *kept = np.einsum("rc,c...->r...", self._plan.matrices[index], seen).astype(np.float32)
        self._slots = np.asarray(kept, np.float32).reshape(self._slots.shape)
        return np.asarray(latents, np.float32)
