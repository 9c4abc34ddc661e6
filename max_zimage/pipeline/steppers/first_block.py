"""First-block caching: one call for each branch row. The graph decides; the host does not see the decision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import download, upload
from max_zimage.graphs.step.inputs import PredictInputs
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.step_inputs import StepInputs
from max_zimage.pipeline.steppers.base import StepResult, rows_of_table
from max_zimage.sampling.positions import sequence_offsets
from max_zimage.sampling.step_cache import FirstBlockCache

_Remembered = tuple[Buffer, Buffer]


class FirstBlockStepper:
    """Asks the first block for every branch of every picture; a picture does not depend on its company."""

    def __init__(self, transformer: ZImageTransformerModel, inputs: ZImageModelInputs, cache: FirstBlockCache) -> None:
        device, items = transformer.device, inputs.items
        self._step, self._update = transformer.first_block_graphs(cache.block)
        self._thresholds = rows_of_table(cache.thresholds(inputs.evaluations.count)[:, None], device)
        self._batch, tokens = inputs.batch, int(items.rope.shape[1])
        self._offsets = [upload(sequence_offsets([attended], tokens), device) for attended in items.lengths]
        self._pictures = [upload(np.asarray([index], np.int32), device) for index in range(inputs.batch)]
        length = int((items.image_rope if cache.block == "noise_refiner" else items.rope).shape[1])
        shapes = ((1, length, transformer.spec.dim), (1, inputs.image_tokens, transformer.spec.dim))
        # Zeros resemble no residual of a first block: the first evaluation computes.
        first_residual, tail_residual = (Buffer.zeros(shape, transformer.dtype, device) for shape in shapes)
        self._remembered: list[_Remembered] = [(first_residual, tail_residual)] * items.count
        self._no_others = Buffer.zeros((0, 1, inputs.image_tokens, transformer.spec.patch_dim), DType.float32, device)
        self._flags: list[dict[int, Buffer]] = []

    def __call__(self, index: int, inputs: StepInputs) -> StepResult:
        """Ask each row's first block, then update its picture; pictures are taken one after the other."""
        given, (_, *coefficients) = inputs.predict, inputs.advance
        latents = prediction = given.latents
        history = inputs.advance.history
        self._flags.append({})
        seen: dict[int, Buffer] = {}
        for picture in range(self._batch):
            for row in range(picture, inputs.num_rows, self._batch):
                seen[row] = self._velocity(row, given._replace(latents=latents), index)
            positive = seen[picture]
            negative = seen.get(picture + self._batch, positive)
            latents, history, prediction = self._update(
                *(latents, prediction, self._pictures[picture], positive, negative, self._no_others),
                *(*inputs.guide, history, *coefficients),
            )
        return StepResult(latents, history, prediction, tuple(seen[row] for row in sorted(seen)))

    def computed(self, items: int) -> npt.NDArray[np.bool_]:
        """What the graph decided, read from the device."""
        rows = range(items)
        return np.array([[row in flags and bool(download(flags[row])[0]) for row in rows] for flags in self._flags])

    def keep(self, rows: Sequence[int]) -> None:
        """What each row remembers is a buffer of its own."""
        branches = len(self._remembered) // self._batch
        self._remembered = [self._remembered[row] for row in rows]
        self._offsets = [self._offsets[row] for row in rows]
        self._flags = [{rows.index(row): flag for row, flag in flags.items() if row in rows} for flags in self._flags]
        self._batch = len(rows) // branches

    def _velocity(self, row: int, given: PredictInputs[Buffer], index: int) -> Buffer:
        own = given._replace(
            caption_tokens=_row(given.caption_tokens, row),
            image_rope=_row(given.image_rope, row),
            rope=_row(given.rope, row),
            valid_length=_row(given.valid_length, row),
            offsets=self._offsets[row],
            latent_rows=_row(given.latent_rows, row),
            variants=_row(given.variants, row),
        )
        velocity, head, tail, flag = self._step(*own, self._thresholds[index], *self._remembered[row])
        self._remembered[row], self._flags[-1][row] = (head, tail), flag
        return velocity


def _row(buffer: Buffer, row: int) -> Buffer:
    return buffer[(slice(row, row + 1), *(slice(None),) * (buffer.rank - 1))]
