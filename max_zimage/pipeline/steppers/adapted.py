"""Adapters by picture: every evaluation runs the transformer, with low-rank parts of each picture's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import upload
from max_zimage.graphs.model.adapted import Factors
from max_zimage.pipeline.step_inputs import StepInputs
from max_zimage.pipeline.steppers.base import Counted, StepResult


class AdaptedStepper:
    """One compiled call for each evaluation.

    Args:
        transformer: Runs it.
        sets: As in `max_zimage.pipeline.mixed_adapters.MixedAdapters`.
        factors: Likewise.
    """

    def __init__(self, transformer: ZImageTransformerModel, sets: Sequence[int], factors: Factors[Buffer]) -> None:
        self._model, self._device, self._factors = transformer.adapted, transformer.device, factors
        self._blocks = transformer.spec.num_blocks
        self._take(sets)
        self._counted = Counted()

    def __call__(self, index: int, inputs: StepInputs) -> StepResult:
        """Run the transformer over all branch rows that take part, in one call with guidance and update."""
        self._counted.add(inputs.num_rows)
        behind = (*inputs.branches, *inputs.guide, *inputs.advance)
        latents, history, prediction, velocity = self._model(
            *inputs.predict, self._first_parts, *self._factors, *behind
        )
        return StepResult(latents, history, prediction, (velocity,))

    def computed(self, items: int) -> npt.NDArray[np.bool_]:
        """Every row that took part."""
        return self._counted.table(items)

    def keep(self, rows: Sequence[int]) -> None:
        """Each picture keeps its own; the rows of the first branch are the pictures."""
        self._take([self._sets[row] for row in rows if row < len(self._sets)])

    def _take(self, sets: Sequence[int]) -> None:
        """Without a set the first part is minus the number of blocks, so that no block has any."""
        self._sets = list(sets)
        self._first_parts = upload(np.asarray(self._sets, np.int32) * np.int32(self._blocks), self._device)
