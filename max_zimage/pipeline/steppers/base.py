"""What all steppers have in common.

A stepper belongs to one batch on its way from noise to picture. What it remembers between evaluations stays on the
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType

from max_zimage.device.devices import upload
from max_zimage.pipeline.step_inputs import StepInputs


class StepResult(NamedTuple):
    """What an evaluation and its update leave.

    Attributes:
        latents: float32 [batch, image_tokens, patch_dim], for the next evaluation.
        history: float32 [slots, batch, image_tokens, patch_dim], what the sampler remembers.
        prediction: Like `latents`: the guided velocity.
        velocities: float32 [rows, image_tokens, patch_dim] each, in the order of the branch rows that took part.
    """

    latents: Buffer
    history: Buffer
    prediction: Buffer
    velocities: tuple[Buffer, ...]


class Stepper(Protocol):
    """Makes evaluations in order."""

    def __call__(self, index: int, inputs: StepInputs) -> StepResult:
        """Make an evaluation and the update behind it.

        Args:
            index: Its number.
            inputs: With latents and history in them.
        """

    def computed(self, items: int) -> npt.NDArray[np.bool_]:
        """Which evaluations ran the whole transformer, bool [evaluations so far, items]; waits for the device.

        A branch that is not part of an evaluation counts as not computed.

        Args:
            items: Branch rows of all branches.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the branch rows alone; what is remembered for them stays on the device.

        Args:
            rows: Which ones, of all branches' rows.
        """


class Counted:
    """How many branch rows ran the whole transformer in each evaluation, the first so many of them."""

    def __init__(self) -> None:
        self._counts: list[int] = []

    def add(self, count: int) -> None:
        """Remember one evaluation."""
        self._counts.append(count)

    def table(self, items: int) -> npt.NDArray[np.bool_]:
        """Bool [evaluations so far, items]."""
        return np.arange(items) < np.asarray(self._counts, np.int64)[:, None]


def rows_of_table(table: npt.NDArray[np.float32], device: Device) -> list[Buffer]:
    """A table on the device, cut into float32 [columns] for each row; one transfer."""
    rows, columns = table.shape
    whole = upload(table, device)
    return [whole[i : i + 1, :].view(DType.float32, (columns,)) for i in range(rows)]
