"""TaylorSeer: runs the transformer where its schedule says so, and extrapolates the velocity in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import kept_rows
from max_zimage.graphs.step.extrapolate import ExtrapolateInputs
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.step_inputs import StepInputs
from max_zimage.pipeline.steppers.base import Counted, StepResult, rows_of_table
from max_zimage.sampling.step_cache import TaylorSeer


class _Expansion(NamedTuple):
    """Velocity and its differences at the last computed evaluation; float32 [items, image_tokens, patch_dim] each."""

    velocity: Buffer
    first: Buffer
    second: Buffer

    def of(self, rows: Sequence[int]) -> _Expansion:
        return _Expansion(*(kept_rows(each, rows) for each in self))


class TaylorStepper:
    """One or two compiled calls for each evaluation."""

    def __init__(self, transformer: ZImageTransformerModel, inputs: ZImageModelInputs, cache: TaylorSeer) -> None:
        count, device = inputs.evaluations.count, transformer.device
        self._model, (self._update, self._extrapolate) = transformer.step, transformer.taylor_graphs
        self._computes = cache.computes(count)
        self._coefficients = rows_of_table(cache.coefficients(count), device)
        self._gaps = rows_of_table(cache.gaps(count).reshape(-1, 1), device)
        self._expansion: _Expansion | None = None
        self._counted = Counted()

    def __call__(self, index: int, inputs: StepInputs) -> StepResult:
        """Run the transformer and renew the differences, or extrapolate from them."""
        # The negative branch is behind the positive one, and may come to an end.
        known = None if self._expansion is None else self._expansion.of(range(inputs.num_rows))
        behind = (*inputs.branches, *inputs.guide, *inputs.advance)
        if known is not None and not self._computes[index]:
            self._counted.add(0)
            taken = ExtrapolateInputs(inputs.predict.latents, *known, self._coefficients[index])
            latents, history, prediction, velocity = self._extrapolate(*taken, *behind)
            return StepResult(latents, history, prediction, (velocity,))
        latents, history, prediction, velocity = self._model(*inputs.predict, *behind)
        known = _Expansion(velocity, velocity, velocity) if known is None else known
        self._expansion = _Expansion(velocity, *self._update(velocity, known.velocity, known.first, self._gaps[index]))
        self._counted.add(inputs.num_rows)
        return StepResult(latents, history, prediction, (velocity,))

    def computed(self, items: int) -> npt.NDArray[np.bool_]:
        """The rows of evaluations that the schedule computes."""
        return self._counted.table(items)

    def keep(self, rows: Sequence[int]) -> None:
        """The expansion is kept for those rows that had part in the last computed evaluation."""
        if self._expansion is not None:
            known = int(self._expansion.velocity.shape[0])
            self._expansion = self._expansion.of([row for row in rows if row < known])
