"""Noise that a sampler draws between steps: from each picture's own seed, whatever shares its batch.

It is drawn on the host one evaluation ahead, while the device works on the one before, and is copied on the device into
the last slot of the sampler's history; no compiled graph knows of it. To draw all of it before the first step would let
the device wait, and hold as many latents as there are steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from max.driver import Buffer, Device
from max.dtype import DType

from max_zimage.device.devices import finish_copies, kept_rows, upload
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.sampling.noise import standard_normal


class StepNoise:
    """The noise of one batch; that of the first evaluation is drawn at once.

    Args:
        inputs: The batch.
        device: Where the transformer runs.
    """

    def __init__(self, inputs: ZImageModelInputs, device: Device) -> None:
        _, channels, rows, patch, columns, _ = map(int, inputs.latents.shape)
        self._shape, self._tokens = (channels, rows, patch, columns, patch), (rows * columns, patch * patch * channels)
        self._plan, self._seeds, self._device = inputs.evaluations, inputs.seeds, device
        self._drawn: Buffer | None = None  # float32 [batch, image_tokens, patch_dim]
        self.draw(0)

    def draw(self, index: int) -> None:
        """Draw what an evaluation will take, if there is one and it takes any, and bring it to the device."""
        self._drawn = None
        if index >= self._plan.count or not self._plan.noisy[index]:
            return
        stream = int(self._plan.streams[index])
        drawn = np.stack([standard_normal(seed, self._shape, stream) for seed in self._seeds])
        # As `max_zimage.graphs.model.latents.PackLatents`: a token holds its square, channels fastest.
        tokens = drawn.transpose(0, 2, 4, 3, 5, 1).reshape(len(self._seeds), *self._tokens)
        self._drawn = upload(tokens, self._device)

    def fill(self, history: Buffer) -> None:
        """Copy what was drawn last into the last slot, if the evaluation takes any.

        Args:
            history: float32 [slots, batch, image_tokens, patch_dim].
        """
        if self._drawn is None:
            return
        slots, *shape = map(int, history.shape)
        history[slots - 1 : slots, :, :, :].inplace_copy_from(self._drawn.view(DType.float32, (1, *shape)))
        finish_copies(history)

    def keep(self, pictures: Sequence[int]) -> None:
        """Go on with some of the pictures."""
        self._seeds = tuple(self._seeds[picture] for picture in pictures) if self._seeds else ()
        self._drawn = None if self._drawn is None else kept_rows(self._drawn, pictures)
