"""Guidance that is not linear: another stepper's velocities, and an update of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import joined, kept_rows, upload
from max_zimage.graphs.guiders.variants import VariantInputs
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.step_inputs import StepInputs
from max_zimage.pipeline.steppers.base import Stepper, StepResult


class VariantStepper:
    """One small compiled call behind each evaluation that has more than the positive branch."""

    def __init__(self, inner: Stepper, transformer: ZImageTransformerModel, inputs: ZImageModelInputs) -> None:
        self._inner, self._update = inner, transformer.guided_update
        self._guidance, self._batch = inputs.guidance, inputs.batch
        self._numbers = [upload(np.full(1, value, np.float32), transformer.device) for value in (0, 1)]
        variant = inputs.guidance.variant
        values = (variant.eta, variant.momentum, variant.norm_threshold, variant.rescale)
        self._values = [upload(np.full(1, value, np.float32), transformer.device) for value in values]
        shape = (inputs.batch, inputs.image_tokens, transformer.spec.patch_dim)
        self._running = Buffer.zeros(shape, DType.float32, transformer.device)

    def __call__(self, index: int, inputs: StepInputs) -> StepResult:
        """Make the evaluation, and the update again where guidance has a say in it."""
        result = self._inner(index, inputs)
        if len(self._guidance.active(index)) == 1:
            return result
        variant, is_guided = self._guidance.variant, bool(self._guidance.negative[index])
        eta, momentum, norm_threshold, rescale = self._values
        given = VariantInputs(
            zero_star=self._numbers[is_guided and variant.name == "cfg_zero_star"],
            projected=self._numbers[is_guided and variant.name == "apg"],
            eta=eta,
            momentum=momentum,
            norm_threshold=norm_threshold,
            rescale=rescale,
            kept=self._numbers[not (variant.zero_init and index == 0)],
            running=self._running,
        )
        latents, history, prediction, running = self._update(
            *(inputs.predict.latents, joined(result.velocities), *inputs.branches),
            *(inputs.guide.guidance_scale, inputs.guide.other_scales, *given, *inputs.advance),
        )
        if is_guided:
            self._running = running
        return StepResult(latents, history, prediction, result.velocities)

    def computed(self, items: int) -> npt.NDArray[np.bool_]:
        """What the other stepper computed."""
        return self._inner.computed(items)

    def keep(self, rows: Sequence[int]) -> None:
        """The running difference is one for each picture."""
        pictures = [row for row in rows if row < self._batch]
        self._running, self._batch = kept_rows(self._running, pictures), len(pictures)
        self._inner.keep(rows)
