"""Normalized attention guidance: evaluations that it is part of run a graph of their own, the others the plain one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import upload
from max_zimage.graphs.step.inputs import NagInputs
from max_zimage.pipeline.step_inputs import StepInputs
from max_zimage.pipeline.steppers.base import Counted, StepResult
from max_zimage.sampling.guidance import Guidance, Nag


class PairedStepper:
    """One compiled call for each evaluation."""

    def __init__(self, transformer: ZImageTransformerModel, guidance: Guidance, nag: Nag) -> None:
        self._plain, self._paired, self._guidance = transformer.step, transformer.nag, guidance
        self._counted = Counted()

        def number(value: float) -> Buffer:
            return upload(np.full(1, value, np.float32), transformer.device)

        self._strength = NagInputs(number(nag.scale), number(nag.tau), number(nag.alpha))

    def __call__(self, index: int, inputs: StepInputs) -> StepResult:
        """Run the transformer; a paired evaluation has the velocity of each picture once."""
        self._counted.add(inputs.num_rows)
        if not self._guidance.is_paired(index):
            return _result(self._plain(*inputs.arguments))
        # The negative caption has done its part inside: to Guide there is the positive branch alone.
        branches = inputs.branches._replace(negative_rows=inputs.branches.positive_rows)
        behind = (*branches, *inputs.guide, *inputs.advance)
        return _result(self._paired(*inputs.predict, *self._strength, *behind))

    def computed(self, items: int) -> npt.NDArray[np.bool_]:
        """Every row that took part."""
        return self._counted.table(items)

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing is remembered."""


def _result(outputs: Sequence[Buffer]) -> StepResult:
    latents, history, prediction, velocity = outputs
    return StepResult(latents, history, prediction, (velocity,))
