"""Every evaluation runs the transformer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from max_zimage.components import ZImageTransformerModel
from max_zimage.pipeline.step_inputs import StepInputs
from max_zimage.pipeline.steppers.base import Counted, StepResult


class PlainStepper:
    """One compiled call for each evaluation."""

    def __init__(self, transformer: ZImageTransformerModel) -> None:
        self._model = transformer.step
        self._counted = Counted()

    def __call__(self, index: int, inputs: StepInputs) -> StepResult:
        """Run the transformer over all branch rows that take part, in one call with guidance and update."""
        self._counted.add(inputs.num_rows)
        latents, history, prediction, velocity = self._model(*inputs.arguments)
        return StepResult(latents, history, prediction, (velocity,))

    def computed(self, items: int) -> npt.NDArray[np.bool_]:
        """Every row that took part."""
        return self._counted.table(items)

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing is remembered."""
