"""What a sampler asks of the model and makes of the answers: plain tables, made on the host before the first step.

A step is one interval of the schedule; a sampler evaluates the model once or several times in it. Every evaluation ends
in one update, whose coefficients are a small matrix times [latents, prediction, slot 1, ..., slot S]: the first row
makes the latents of the next evaluation, the others what the slots hold from then on. A stochastic sampler has one slot
more, the last: before the evaluations that are marked noisy it is filled with normal noise, of the picture's own seed.

Reference for the form: `max_zimage.graphs.step.advance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.schedule import Schedule

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluations:
    """The evaluations of a request, in order.

    Attributes:
        sigmas: float32 [E], the noise level that each evaluation is made at.
        timesteps: float32 [E], the same as the transformer gets it, 1 - sigma.
        steps: int [E], the step of the schedule that each belongs to.
        matrices: float64 [E, S + 1, S + 2]; rounded where they are used.
        noisy: bool [E], the evaluations whose update takes normal noise from the last slot.
        left_out: Steps of the whole schedule before the first one.
        whole_count: Steps of the whole schedule.
        streams: int [E], which noise of a picture's seed that is; see `max_zimage.sampling.noise`. The same for a step
            whether or not steps before it were left out.
    """

    sigmas: FloatArray
    timesteps: FloatArray
    steps: npt.NDArray[np.int64]
    matrices: npt.NDArray[np.float64]
    noisy: npt.NDArray[np.bool_]
    streams: npt.NDArray[np.int64]
    left_out: int
    whole_count: int

    @property
    def whole_steps(self) -> npt.NDArray[np.int64]:
        """Int [E], the step of the whole schedule, from which image-to-image may leave the first ones out."""
        return self.steps + self.left_out

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """float64 [E], the share of the whole schedule's steps that lies before each evaluation's step."""
        return np.asarray(self.whole_steps / self.whole_count, np.float64)

    @property
    def count(self) -> int:
        """How often the model is evaluated."""
        return len(self.sigmas)

    @property
    def slots(self) -> int:
        """How many latents the sampler remembers."""
        return int(self.matrices.shape[1]) - 1

    @property
    def updates(self) -> FloatArray:
        """float32 [E, 2]: what of the prediction is taken away, and what of the latents is added to them."""
        first = self.matrices[:, 0]
        return np.stack([-first[:, 1], first[:, 0] - 1], axis=1).astype(np.float32)

    @property
    def past(self) -> FloatArray:
        """float32 [E, S]: what of each slot is added to the latents."""
        return self.matrices[:, 0, 2:].astype(np.float32)

    @property
    def pushed(self) -> FloatArray:
        """float32 [E, S, 2]: what each slot takes from the latents and from the prediction."""
        return self.matrices[:, 1:, :2].astype(np.float32)

    @property
    def mixed(self) -> FloatArray:
        """float32 [E, S, S]: what each slot takes from all slots."""
        return self.matrices[:, 1:, 2:].astype(np.float32)

    def of_step(self, step: int) -> range:
        """The evaluations of one step."""
        found = np.flatnonzero(self.steps == step)
        return range(int(found[0]), int(found[-1]) + 1)


FIRST_STREAM, _STREAMS_PER_STEP = 2, 16
"""0 is the starting noise, 1 what the autoencoder samples by; then there are so many for each step."""


def evaluations(
    plan: Schedule,
    sigmas: Sequence[float],
    steps: Sequence[int],
    matrices: Sequence[npt.ArrayLike],
    noisy: Sequence[bool] | None = None,
) -> Evaluations:
    """Check a sampler's tables.

    Args:
        plan: The request's schedule.
        sigmas: Noise level of each evaluation.
        steps: Its step, never falling; every step has one.
        matrices: [S + 1, S + 2] each, in float64.
        noisy: Whether each takes noise from the last slot; none does if not given.

    Raises:
        ValueError: If the tables do not fit each other or the schedule, or a coefficient is not finite.
    """
    levels, numbers, table = (
        np.asarray(sigmas, np.float32),
        np.asarray(steps, np.int64),
        np.asarray(matrices, np.float64),
    )
    takes = np.zeros(len(levels), np.bool_) if noisy is None else np.asarray(noisy, np.bool_)
    fits = table.ndim == 3 and table.shape[2] == table.shape[1] + 1 and len(levels) == len(numbers) == len(table)
    fits = fits and len(takes) == len(levels) and (table.shape[1] > 1 or not takes.any())
    if not fits or np.unique(numbers).tolist() != list(range(plan.num_steps)) or (np.diff(numbers) < 0).any():
        raise ValueError(
            f"a sampler must evaluate each of {plan.num_steps} steps in order, with a matrix [slots + 1, slots + 2] "
            f"for each evaluation, and a slot where one takes noise; got {len(levels)} levels, steps "
            f"{numbers.tolist()}, matrices {list(table.shape)} and {int(takes.sum())} that take noise"
        )
    finite = np.isfinite(table.astype(np.float32))
    if not finite.all():
        raise ValueError(f"a sampler's coefficients must be finite in float32, got {table[~finite][0]}")
    times = np.asarray([plan.timestep(level) for level in levels], np.float32)
    within = np.arange(len(numbers)) - np.searchsorted(numbers, numbers)
    streams = FIRST_STREAM + _STREAMS_PER_STEP * (plan.left_out + numbers) + within
    return Evaluations(
        sigmas=levels,
        timesteps=times,
        steps=numbers,
        matrices=table,
        noisy=takes,
        streams=streams.astype(np.int64),
        left_out=plan.left_out,
        whole_count=plan.left_out + plan.num_steps + plan.cut_off,
    )


def units(slots: int) -> Sequence[npt.NDArray[np.float64]]:
    """What the columns of a matrix stand for, as rows to add up: latents, prediction, slot 1, ..., slot S."""
    return list(np.eye(slots + 2))
