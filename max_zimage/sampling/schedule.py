"""The flow-matching noise schedule as pure numpy: sigmas, model timesteps, step lengths.

Every number equals, bit for bit, what diffusers computes in float32. Reference: diffusers `ZImagePipeline.__call__`
and `FlowMatchEulerDiscreteScheduler.set_timesteps`; shapes that diffusers has not are in `max_zimage.sampling.shapes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.dynamic_shift import DynamicShift
from max_zimage.sampling.names import DEFAULT_SAMPLER, DEFAULT_SHAPE
from max_zimage.sampling.ranges import MAX_SHIFT, MIN_SHIFT
from max_zimage.sampling.shapes import SCALES_NOISE, shaped

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """What a checkpoint's scheduler configuration decides.

    Attributes:
        shift: Static time shift; 3.0 for the distilled checkpoints, 6.0 for the base model.
        num_train_timesteps: Scale between a sigma and the scheduler's timestep, 1000.
        dynamic: The ends of a shift by the picture's size.
        is_dynamic: Whether that takes the place of `shift`.
        terminal: The last level before 0, to which shifted levels are stretched; or None.
        shape: The sigma shape where a request names none.
        sampler: The sampler where a request names none.
    """

    shift: float
    num_train_timesteps: int
    dynamic: DynamicShift = field(default_factory=DynamicShift)
    is_dynamic: bool = False
    terminal: float | None = None
    shape: str = DEFAULT_SHAPE
    sampler: str = DEFAULT_SAMPLER

    def __post_init__(self) -> None:
        """Refuse values no schedule can be built from."""
        if self.terminal is not None and not 0 < self.terminal < 1:
            raise ValueError(f"shift_terminal must be above 0 and below 1, got {self.terminal}")
        if not MIN_SHIFT <= self.shift <= MAX_SHIFT:
            raise ValueError(
                f"the scheduler's shift must be from {MIN_SHIFT} to {MAX_SHIFT:g}, got {self.shift}; usual are 1 to 10"
            )
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, got {self.num_train_timesteps}")
        if self.is_dynamic:
            self.dynamic.check()

    def shift_of(self, tokens: int) -> float:
        """The shift of a picture of so many image tokens, where a request names none.

        Raises:
            ValueError: If it grows out of the range of shifts.
        """
        return self.dynamic.shift(tokens) if self.is_dynamic else self.shift


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """One request's way from noise to picture, in N steps.

    Attributes:
        sigmas: float32 [N + 1], noise levels from high to low, the last one 0.
        timesteps: float32 [N], 1 - sigma as the transformer gets it (0 is pure noise, 1 is clean).
        deltas: float32 [N], next sigma - sigma, all below 0.
        shift: The shift that made them, for samplers that begin a little below 1.
        scale: Between a sigma and the scheduler's timestep.
        noise_scale: What the noise that a seed draws is multiplied by; the level that noise ends at.
        left_out: Steps that were left out before the first one.
        cut_off: Steps that were left out behind the last one; if there are, the last level is not 0.
    """

    sigmas: FloatArray
    timesteps: FloatArray
    deltas: FloatArray
    shift: float = 1.0
    noise_scale: float = 1.0
    scale: float = 1000.0
    left_out: int = 0
    cut_off: int = 0

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.timesteps)

    def after(self, steps: int) -> Schedule:
        """What is left of the schedule when some steps are left out, as image-to-image does."""
        return replace(
            self,
            sigmas=self.sigmas[steps:],
            timesteps=self.timesteps[steps:],
            deltas=self.deltas[steps:],
            left_out=self.left_out + steps,
        )

    def between(self, steps: range) -> Schedule:
        """Some of the steps, one behind the other."""
        first, last = steps.start, steps.stop
        return replace(
            self,
            sigmas=self.sigmas[first : last + 1],
            timesteps=self.timesteps[first:last],
            deltas=self.deltas[first:last],
            left_out=self.left_out + first,
            cut_off=self.cut_off + self.num_steps - last,
        )

    def timestep(self, sigma: np.float32) -> np.float32:
        """What the transformer gets for a noise level: the schedule's own where it is one of its levels.

        Also the last level of a part of a schedule, by the arithmetic of all others.
        """
        found = np.flatnonzero(self.sigmas[:-1] == sigma)
        if len(found):
            return self.timesteps[found[0]]
        scale = np.float32(self.scale)
        return (scale - sigma * scale) / scale if sigma == self.sigmas[-1] else np.float32(1) - sigma


def first_step(steps: int, strength: float) -> int:
    """The step that image-to-image begins with: 0 for a strength of 1, the last one for a strength near 0.

    A strength so near 0 that `steps` less its share is `steps` leaves none; see `smallest_strength`.

    Reference: diffusers pipelines/z_image/pipeline_z_image_img2img.py, get_timesteps.

    >>> first_step(8, 0.6)
    3
    """
    return int(max(steps - min(steps * strength, steps), 0))


def smallest_strength(steps: int) -> float:
    """The smallest strength of three digits that leaves image-to-image a step; float64 tells it from 0 steps.

    >>> first_step(8, smallest_strength(8)), first_step(8, smallest_strength(8) * 0.99)
    (7, 8)
    """
    too_small, enough = 0.0, 1.0
    while too_small < (middle := (too_small + enough) / 2) < enough:
        too_small, enough = (middle, enough) if first_step(steps, middle) >= steps else (too_small, middle)
    written = f"{enough:.2e}"
    digits, _, power = written.partition("e")
    return float(written) if float(written) >= enough else float(f"{float(digits) + 0.01:.2f}e{power}")


def default_sigmas(steps: int) -> FloatArray:
    """Return the unshifted noise levels 1 ... 1/steps.

    Args:
        steps: Number of denoising steps, at least 1.

    Returns:
        float32 [steps], evenly spaced. The reference spaces them with a float32 `linspace` that works from both ends
        with one rounding a value; float64 holds its products exactly, so it is repeated here and rounded once.

    Raises:
        ValueError: If there is no step.
    """
    if steps < 1:
        raise ValueError(f"a schedule needs at least 1 step, got {steps}")
    if steps == 1:
        return np.ones(1, np.float32)
    last = np.float32(1 / steps)
    spacing = np.float64((last - np.float32(1)) / np.float32(steps - 1))
    index = np.arange(steps)
    from_first = 1.0 + spacing * index
    from_last = np.float64(last) - spacing * (steps - 1 - index)
    return np.where(index < steps // 2, from_first, from_last).astype(np.float32)


def shifted(sigmas: Sequence[float] | FloatArray, shift: float) -> FloatArray:
    """Move noise levels towards 1: `shift * s / (1 + (shift - 1) * s)`, in float32.

    Args:
        sigmas: Noise levels in (0, 1].
        shift: Static shift above 0; 1 changes nothing.

    Returns:
        float32, as many values as given.
    """
    values = np.asarray(sigmas, dtype=np.float32)
    factor, rest = np.float32(shift), np.float32(shift - 1)
    moved: FloatArray = factor * values / (np.float32(1) + rest * values)
    return moved


def schedule(
    spec: ScheduleSpec,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    shift: float | None = None,
    shape: str | None = None,
    tokens: int = 0,
) -> Schedule:
    """Build the schedule of one request.

    Args:
        spec: The checkpoint's scheduler.
        steps: Number of denoising steps, spaced evenly before the shift. Give this or `sigmas`.
        sigmas: Noise levels in (0, 1], strictly decreasing and without the final 0. They are shifted too, as the
            reference shifts them.
        shift: Takes the place of the checkpoint's shift, the dynamic one included.
        shape: How the levels of `steps` are spread, one of `max_zimage.sampling.names.SIGMA_SHAPES`; the checkpoint's
            if not given.
        tokens: Image tokens, which only a dynamic shift asks for.

    Returns:
        The schedule. Timesteps repeat the reference's float32 rounding, `(1000 - 1000 * sigma) / 1000`.

    Raises:
        ValueError: If neither or both of `steps` and `sigmas` are given, the shape has not as many levels, or a step
            would have no length.
    """
    if (steps is None) == (sigmas is None):
        raise ValueError(f"give either steps or sigmas, got steps={steps} and sigmas={sigmas}")
    start = np.asarray(sigmas, np.float32) if sigmas is not None else default_sigmas(steps or 0)
    levels, factor = _shifted_by(spec, start, shift, tokens)
    shape = DEFAULT_SHAPE if sigmas is not None else shape or spec.shape
    if shape != DEFAULT_SHAPE:
        levels = shaped(shape, levels, factor)
    with_end = np.append(levels, np.float32(0))
    deltas = np.diff(with_end)
    # Numbers below float32's smallest normal one are 0 on some devices.
    falls = deltas <= -np.finfo(np.float32).tiny
    if not falls.all():
        position = int(np.argmin(falls))
        raise ValueError(
            f"sigmas must fall at every step in float32 after the shift: sigma {with_end[position]} at step {position} "
            f"is followed by {with_end[position + 1]}; use fewer steps or values further apart"
        )
    scale = np.float32(spec.num_train_timesteps)
    timesteps = (scale - levels * scale) / scale
    return Schedule(
        sigmas=with_end,
        timesteps=timesteps,
        deltas=deltas,
        shift=factor,
        scale=float(scale),
        noise_scale=float(levels[0]) if shape in SCALES_NOISE else 1.0,
    )


def _shifted_by(spec: ScheduleSpec, start: FloatArray, shift: float | None, tokens: int) -> tuple[FloatArray, float]:
    """Levels after a request's or the checkpoint's shift, which is the second value."""
    factor = spec.shift_of(tokens) if shift is None else shift
    if shift is not None or not spec.is_dynamic:
        levels = shifted(start, factor)
    else:
        # The same as a static shift's, in the order of operations that the reference has here.
        levels = np.float32(factor) / (np.float32(factor) + (np.float32(1) / start - np.float32(1)))
    rest = np.float32(1) - levels
    if spec.terminal is not None and rest[-1] > 0:  # one step from 1 to 0 has nothing between
        levels = np.float32(1) - rest / (rest[-1] / np.float32(1 - spec.terminal))
    return levels, factor
