"""Whether a request leaves every step of its schedule something to do.

Sigmas, shift, steps and strength are each right by themselves in `max_zimage.request.checks`; here they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from max_zimage.errors import RequestError
from max_zimage.request.fields import RequestFields
from max_zimage.sampling import samplers
from max_zimage.sampling.names import DEFAULT_SHAPE, STRETCHED, UNSHIFTED
from max_zimage.sampling.schedule import Schedule, ScheduleSpec, first_step, schedule, smallest_strength

TOKEN_SIDE = 16
"""Pixels of a picture that a token stands for, on either side."""


def has_a_step(strength: float, steps: int) -> None:
    """Refuse a strength that leaves none of the steps."""
    if first_step(steps, strength) >= steps:
        message = "{field} {given} leaves none of the {steps} steps; the smallest that leaves one is {smallest}"
        raise RequestError.of("strength", message, given=strength, steps=steps, smallest=smallest_strength(steps))


def checked_schedule(spec: ScheduleSpec, asked: RequestFields) -> Schedule:
    """Return a request's whole schedule, every step of which has a length in float32.

    Args:
        spec: The checkpoint's.
        asked: The request.

    Raises:
        RequestError: If a step has none, or there are not as many levels as steps; blames what made it so.
    """
    levels, tokens = asked.sigmas, (asked.height // TOKEN_SIDE) * (asked.width // TOKEN_SIDE)
    steps = None if levels else asked.num_inference_steps
    try:
        own = _spec_of(spec, asked)
        found = schedule(own, steps=steps, sigmas=levels, shift=asked.shift, shape=asked.sigma_shape, tokens=tokens)
    except ValueError as error:
        raise RequestError.of(_blamed(spec, asked), "{field}: {reason}", reason=error) from error
    if asked.shift_terminal is not None and found.num_steps == 1 and found.sigmas[0] == 1:
        message = "{field} {given} is a level between 1 and 0, and there is one step from 1 to 0; "
        raise RequestError.of(
            "shift_terminal", message + "ask for more steps, or leave it out", given=asked.shift_terminal
        )
    return found


def _spec_of(spec: ScheduleSpec, asked: RequestFields) -> ScheduleSpec:
    """The checkpoint's schedule, with what the request has in its place."""
    return replace(
        spec,
        is_dynamic=spec.is_dynamic if asked.dynamic_shift is None else asked.dynamic_shift,
        terminal=spec.terminal if asked.shift_terminal is None else asked.shift_terminal,
    )


def _blamed(spec: ScheduleSpec, asked: RequestFields) -> str:
    """The field that a schedule without a length is due to."""
    if asked.sigmas:
        return "sigmas"
    if asked.sigma_shape != DEFAULT_SHAPE:
        return "sigma_shape"
    if asked.shift_terminal is not None:
        return "shift_terminal"
    if asked.dynamic_shift:
        return "dynamic_shift"
    return "num_inference_steps" if asked.shift is None and not spec.is_dynamic else "shift"


def check_shift(asked: RequestFields) -> None:
    """Refuse what a request says of the shift if it contradicts itself, or would do nothing under its shape."""
    if asked.dynamic_shift and asked.shift is not None:
        message = (
            "{field} grows with the picture, and {name[shift]} {shift:g} is one shift for all sizes; leave one out"
        )
        raise RequestError.of("dynamic_shift", message, shift=asked.shift)
    if asked.dynamic_shift and asked.sigma_shape in UNSHIFTED:
        message = "{field} would do nothing: {name[sigma_shape]} {shape} is not shifted; take another, or leave it out"
        raise RequestError.of("dynamic_shift", message, shape=asked.sigma_shape)
    if asked.shift_terminal is not None and asked.sigma_shape not in STRETCHED:
        message = (
            "{field} would do nothing: {name[sigma_shape]} {shape} has a last level of its own; take one of {known}"
        )
        values = {"shape": asked.sigma_shape, "known": ", ".join(STRETCHED)}
        raise RequestError.of("shift_terminal", message + ", or leave it out", **values)


def check_evaluations(asked: RequestFields, legs: Sequence[int], most: int) -> None:
    """Refuse a sampler that evaluates the model too often.

    Args:
        asked: The request.
        legs: Steps that are taken in each part of the run, without those that its strength leaves out.
        most: Evaluations that are allowed.
    """
    steps, count = sum(legs), sum(samplers.cost(asked.sampler, each)[0] for each in legs)
    if count > most:
        message = "{field}: {sampler} evaluates the model {count} times in {steps} steps, at most {most} are allowed; "
        values = {"sampler": asked.sampler, "count": count, "steps": steps, "most": most}
        blamed = "num_inference_steps" if asked.passes is None else "passes"
        raise RequestError.of(blamed, message + "ask for fewer steps", **values)
