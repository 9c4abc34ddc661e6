"""Adapters by picture: every evaluation runs the transformer, with low-rank parts of each picture's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import upload
from max_zimage.pipeline.mixed_adapters import MixedAdapters
from max_zimage.pipeline.step_inputs import StepInputs
from max_zimage.pipeline.steppers.base import Counted, StepResult


class AdaptedStepper:
    """One compiled call for each evaluation."""

    def __init__(self, transformer: ZImageTransformerModel, mixed: MixedAdapters) -> None:
        self._model, self._device, self._factors = transformer.adapted, transformer.device, mixed.factors
        self._take(mixed.slots)
        self._counted = Counted()

    def __call__(self, index: int, inputs: StepInputs) -> StepResult:
        """Run the transformer over all branch rows that take part, in one call with guidance and update."""
        self._counted.add(inputs.num_rows)
        behind = (*inputs.branches, *inputs.guide, *inputs.advance)
        latents, history, prediction, velocity = self._model(*inputs.predict, self._slots, *self._factors, *behind)
        return StepResult(latents, history, prediction, (velocity,))

    def computed(self, items: int) -> npt.NDArray[np.bool_]:
        """Every row that took part."""
        return self._counted.table(items)

    def keep(self, rows: Sequence[int]) -> None:
        """Each picture keeps its slot; the rows of the first branch are the pictures."""
        self._take([self._of[row] for row in rows if row < len(self._of)])

    def _take(self, slots: Sequence[int]) -> None:
        self._of = list(slots)
        self._slots = upload(np.asarray(self._of, np.int32), self._device)
