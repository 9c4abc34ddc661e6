"""Noise that a sampler draws between steps: from each picture's own seed, whatever shares its batch.

It is drawn on the host while the device works on the evaluation before, and laid into the last slot of the sampler's
history; no compiled graph knows of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from max.driver import Buffer

from max_zimage.device.devices import finish_copies, upload
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.sampling.noise import standard_normal


class StepNoise:
    """The noise of one batch.

    Args:
        inputs: The batch.
    """

    def __init__(self, inputs: ZImageModelInputs) -> None:
        _, channels, rows, patch, columns, _ = map(int, inputs.latents.shape)
        self._shape = (channels, rows, patch, columns, patch)
        self._plan, self._seeds = inputs.evaluations, inputs.seeds

    def fill(self, history: Buffer, index: int) -> None:
        """Draw what an evaluation takes, if it takes any.

        Args:
            history: float32 [slots, batch, image_tokens, patch_dim], whose last slot is written to.
            index: The evaluation.
        """
        if not self._plan.noisy[index]:
            return
        stream, slots = int(self._plan.streams[index]), int(history.shape[0])
        drawn = np.stack([standard_normal(seed, self._shape, stream) for seed in self._seeds])
        # As `max_zimage.graphs.model.latents.PackLatents`: a token holds its square, channels fastest.
        tokens = drawn.transpose(0, 2, 4, 3, 5, 1).reshape(1, *map(int, history.shape[1:]))
        noise = upload(tokens, history.device)  # has a name so that it is there until it is copied
        history[slots - 1 : slots, :, :, :].inplace_copy_from(noise)
        finish_copies(history)

    def keep(self, pictures: Sequence[int]) -> None:
        """Go on with some of the pictures."""
        self._seeds = tuple(self._seeds[picture] for picture in pictures) if self._seeds else ()
