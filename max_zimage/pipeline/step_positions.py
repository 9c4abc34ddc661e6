"""Rotary tables that follow the noise level: those of the axes are uploaded once, those of all tokens made by a graph.

Where a batch does not extrapolate its positions, its branch rows keep the tables that they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import upload
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.items import Items
from max_zimage.sampling.positions import axis_table
from max_zimage.sampling.positions.dype import axis_tables


class StepPositions:
    """The tables of one batch.

    Args:
        transformer: Has the graph, and runs the evaluations.
        inputs: The batch.
    """

    def __init__(self, transformer: ZImageTransformerModel, inputs: ZImageModelInputs) -> None:
        self._axes: list[tuple[Buffer, Buffer, Buffer]] = []
        if inputs.dype is None:
            return
        self._make, spec, device = transformer.positions, transformer.rope_spec, transformer.device
        _, _, rows, _, columns, _ = map(int, inputs.latents.shape)
        tables = axis_tables(spec, inputs.dype, rows, columns, inputs.evaluations.sigmas)
        frames = upload(axis_table(spec, 0), device)
        self._axes = [(frames, *each) for each in zip(*(_pieces(table, device) for table in tables), strict=True)]

    def of(self, items: Items, index: int) -> Items:
        """Branch rows with the tables of an evaluation.

        Args:
            items: The branch rows that take part in it.
            index: Its number.
        """
        if not self._axes or items.places is None:
            return items
        image_rope, rope = self._make(*self._axes[index], *items.places)
        return replace(items, image_rope=image_rope, rope=rope)


def _pieces(table: npt.NDArray[np.float32], device: Device) -> Sequence[Buffer]:
    """A table on the device, cut into float32 [positions, pairs, 2] for each evaluation; one transfer."""
    whole = upload(table, device)
    return [whole[i : i + 1, :, :, :].view(DType.float32, table.shape[1:]) for i in range(len(table))]
