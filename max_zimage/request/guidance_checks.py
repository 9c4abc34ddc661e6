"""Whether what a request says of guidance fits together, and does anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

from max_zimage.errors import RequestError
from max_zimage.request.facts import RequestFacts
from max_zimage.request.guidance_fields import SLG_SCALE, GuidanceFields
from max_zimage.sampling.schedule import Schedule

_OF_SLG = ("slg_layers", "slg_start", "slg_stop")
_OF_APG = ("apg_eta", "apg_momentum", "apg_norm_threshold")
_SKIPPED, _OF = range(7, 13), 30
_DEFAULTS = {field.name: field.metadata["row"].default for field in dataclasses.fields(GuidanceFields)}


def slg_scale(value: object, switch: object) -> object:
    """The scale that is asked for, where it may be asked for by the switch alone.

    Raises:
        RequestError: If the switch is none, or says another thing than the scale.
    """
    if switch is None:
        return value
    if not isinstance(switch, bool):
        raise RequestError.of("slg", "{field} must be true or false, got {given!r}", given=switch)
    if value is None:
        return SLG_SCALE if switch else 0.0
    if switch != (value != 0):
        message = "{field} and {name[slg_scale]} contradict each other, got {given} and {scale}; leave one out"
        raise RequestError.of("slg", message, given=str(switch).lower(), scale=value)
    return value


def skipped_layers(layers: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    """The layers that skip-layer guidance leaves out: 7 to 12 of 30 unless named, and the same share of others.

    >>> skipped_layers(None, 6)
    (1, 2)
    """
    return tuple(sorted({layer * num_layers // _OF for layer in _SKIPPED})) if layers is None else layers


def guidance_comes_on(asked: RequestFacts) -> bool:
    """Whether the negative branch is part of a step and was none of the step before."""
    start, stop = asked.guidance_interval

    def comes_on(first: int, steps: int) -> bool:
        scales = asked.guidance_scale if isinstance(asked.guidance_scale, tuple) else (asked.max_guidance,) * steps
        is_on = [scales[step] > 0 and start <= step / steps < stop for step in range(first, steps)]
        return any(now and not before for before, now in pairwise(is_on))

    return any(comes_on(first, steps) for first, steps in asked.taken)


def check_guidance(asked: RequestFacts, num_layers: int) -> None:
    """Refuse what contradicts itself or would do nothing.

    Args:
        asked: The request.
        num_layers: Main layers of the transformer.
    """
    changed = {name for name, value in _DEFAULTS.items() if getattr(asked, name) != value}
    _check_scales(asked)
    start, stop = asked.guidance_interval
    if not start < stop:
        message = "{field} must begin before it ends, got {start:g} and {stop:g}"
        raise RequestError.of("guidance_interval", message, start=start, stop=stop)
    _check_holds(asked, "guidance_interval", "", start, stop)
    needs_guidance = changed & {"guidance_interval", "guidance_variant"}
    needs_guidance |= {"guidance_rescale"} & changed if not asked.slg_scale else set()
    if needs_guidance and not asked.use_guidance:
        message = "{field} changes guidance, and {name[guidance_scale]} is 0; set {name[guidance_scale]} above 0, "
        raise RequestError.of(min(needs_guidance), message + "or leave {field} out")
    if asked.cfg_normalization and changed & {"guidance_variant", "guidance_rescale"}:
        name = min(changed & {"guidance_variant", "guidance_rescale"})
        message = "{field} and {name[cfg_normalization]} both change the prediction's size, got both; leave one out"
        raise RequestError.of(name, message)
    _check_belongs(
        changed, ("zero_init",), "guidance_variant", asked.guidance_variant == "cfg_zero_star", "cfg_zero_star"
    )
    _check_belongs(changed, _OF_APG, "guidance_variant", asked.guidance_variant == "apg", "apg")
    _check_belongs(changed, _OF_SLG, "slg_scale", asked.slg_scale > 0, f"a scale such as {SLG_SCALE}")
    if asked.slg_scale:
        _check_window(asked)
        if len(skipped_layers(asked.slg_layers, num_layers)) >= num_layers:
            message = "{field} must leave one of the {layers} layers, got all of them"
            raise RequestError.of("slg_layers", message, layers=num_layers)


def check_legs(asked: RequestFacts, legs: Sequence[tuple[RequestFacts, Schedule]]) -> None:
    """Refuse guidance that is cut off in all of its steps, and a first evaluation that predicts nothing without it.

    Args:
        asked: The request.
        legs: What is asked of each part of its run, and the steps of that.
    """
    if not asked.use_guidance:
        return
    times = [time for leg, plan in legs for time in _times(leg, plan) if time is not None]
    is_whole = asked.denoising_start == 0 and asked.denoising_end == 1
    if is_whole and times and min(times) > asked.cfg_truncation:
        message = (
            "{field} {given:g} is below the times of all steps with guidance, of which the first has {time:.3g}; raise "
        )
        message += "it, or set {name[guidance_scale]} to 0"
        raise RequestError.of("cfg_truncation", message, given=asked.cfg_truncation, time=min(times))
    begins = [_begins(leg, plan) for leg, plan in legs if leg.zero_init]
    if begins and not any(begins):
        message = "{field} is of guidance in the first evaluation, and it begins later; leave {field} out, or let it "
        raise RequestError.of("zero_init", message + "begin with the first step")


def _times(leg: RequestFacts, plan: Schedule) -> list[float | None]:
    """1 - noise level of each step that is taken; None outside of the window and where the scale is 0."""
    start, stop = leg.guidance_interval
    count = _count(plan)
    scales = leg.guidance_scale if isinstance(leg.guidance_scale, tuple) else (leg.guidance_scale,) * count
    taken = range(plan.left_out, plan.left_out + plan.num_steps)
    is_on = [scales[step] > 0 and start <= step / count < stop for step in taken]
    return [float(time) if on else None for on, time in zip(is_on, plan.timesteps, strict=True)]


def _begins(leg: RequestFacts, plan: Schedule) -> bool:
    """Whether the first evaluation has another branch than that of the prompt."""
    time = _times(leg, plan)[0]
    skips = leg.slg_scale > 0 and leg.slg_start <= plan.left_out / _count(plan) < leg.slg_stop
    return skips or (time is not None and time <= leg.cfg_truncation)


def _count(plan: Schedule) -> int:
    """Steps of the whole schedule."""
    return plan.left_out + plan.num_steps + plan.cut_off


def _check_scales(asked: RequestFacts) -> None:
    scales = asked.guidance_scale
    if isinstance(scales, tuple) and len(scales) != asked.num_inference_steps:
        message = "{field} must be one number or one for each of {steps} steps, got {given}"
        raise RequestError.of("guidance_scale", message, steps=asked.num_inference_steps, given=len(scales))


def _check_belongs(changed: set[str], names: tuple[str, ...], to: str, is_on: bool, value: str) -> None:
    if not is_on and (given := [name for name in names if name in changed]):
        message = f"{{field}} would do nothing; set {{name[{to}]}} to {{value}} too, or leave it out"
        raise RequestError.of(given[0], message, value=value)


def _check_window(asked: RequestFacts) -> None:
    start, stop = asked.slg_start, asked.slg_stop
    if not start < stop:
        message = "{field} must be below {name[slg_stop]}, got {start:g} and {stop:g}"
        raise RequestError.of("slg_start", message, start=start, stop=stop)
    _check_holds(asked, "slg_start", " and {name[slg_stop]}", start, stop)


def _check_holds(asked: RequestFacts, name: str, other: str, start: float, stop: float) -> None:
    """Refuse a window that opens in none of the steps."""
    first, steps = asked.taken[-1]
    if not any(start <= step / count < stop for begin, count in asked.taken for step in range(begin, count)):
        message = (
            "{field}" + other + ", {start:g} to {stop:g}, hold none of the steps that are taken ({first} to {last} "
        )
        message += "of {steps}); widen the window, or ask for more steps"
        values = {"start": start, "stop": stop, "first": first, "last": steps - 1, "steps": steps}
        raise RequestError.of(name, message, **values)
