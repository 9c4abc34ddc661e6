"""Whether a request leaves every step of its schedule something to do.

Sigmas, shift, steps and strength are each right by themselves in `max_zimage.request.checks`; here they meet.
"""

from __future__ import annotations

from max_zimage.errors import RequestError
from max_zimage.sampling.schedule import Schedule, ScheduleSpec, first_step, schedule, smallest_strength


def has_a_step(strength: float, steps: int) -> None:
    """Refuse a strength that leaves none of the steps."""
    if first_step(steps, strength) >= steps:
        message = "{field} {given} leaves none of the {steps} steps; the smallest that leaves one is {smallest}"
        raise RequestError.of("strength", message, given=strength, steps=steps, smallest=smallest_strength(steps))


def checked_schedule(spec: ScheduleSpec, steps: int, levels: tuple[float, ...] | None, shift: float | None) -> Schedule:
    """Return a request's schedule, every step of which has a length in float32.

    Args:
        spec: The checkpoint's.
        steps: Of the request.
        levels: Its sigmas, or None.
        shift: Its shift, or None.

    Raises:
        RequestError: If a step has none; blames what made it so.
    """
    try:
        return schedule(spec, steps=None if levels else steps, sigmas=levels, shift=shift)
    except ValueError as error:
        name = "sigmas" if levels else "num_inference_steps" if shift is None else "shift"
        raise RequestError.of(name, "{field}: {reason}", reason=error) from error
