"""Whether the passes of a request, or its steps with half of both sides, can be drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from max_zimage.errors import Item, RequestError
from max_zimage.request import passes as words
from max_zimage.request.checks import Problems, ranged, shown, whole_number
from max_zimage.request.facts import RequestFacts
from max_zimage.request.fields import ROWS
from max_zimage.request.limits import Limits
from max_zimage.request.passes import DEFAULT_STRENGTH, TOKEN_SIDE, Pass
from max_zimage.request.passes_fields import LANCZOS
from max_zimage.sampling.schedule import first_step, smallest_strength

MOST = 16
"""Passes of a request."""

_KEYS = ("scale", "steps", "strength", "shift", "guidance_scale")
_UNKNOWN_STEPS = 0


def checked_passes(name: str, value: object, limits: Limits) -> tuple[Pass, ...]:
    """Return passes; those that do not say their steps have 0 of them, see `with_steps`.

    Args:
        name: The field.
        value: A list of mappings with the attributes of `Pass`, JSON of one, or one word, see
            `max_zimage.request.passes.read`.
        limits: What the checkpoint can do at most.

    Raises:
        RequestError: With all that is wrong.
    """
    given = _listed(value) if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not 1 <= len(given) <= MOST:
        message = "{field} must be a list of 1 to {most} passes, or a text such as 0.5x9,1.0x9:0.5, got {given}"
        got = f"{len(given)} passes" if isinstance(given, (list, tuple)) else shown(value)
        raise RequestError.of(name, message, most=MOST, given=got)
    problems = Problems()
    found = [
        problems.check(Pass(scale=1.0, steps=1, strength=1.0), _checked, problems, name, index, each, limits)
        for index, each in enumerate(given)
    ]
    problems.raise_if_any()
    if found[-1].scale != 1:
        message = "{field}: the last scale must be 1, got {given}; the size of the picture is that of its last pass"
        raise RequestError.of(Item(name, f"[{len(found) - 1}]"), message, given=found[-1].scale)
    return tuple(found)


def with_steps(
    problems: Problems, passes: Sequence[Pass] | None, given: object, steps: int
) -> tuple[tuple[Pass, ...] | None, int]:
    """Passes that all have steps, and the steps of the last one, which are the request's.

    Args:
        problems: Collects what is wrong.
        passes: From `checked_passes`, or None.
        given: What the request says of its steps; None for nothing.
        steps: The same, checked, or the default.
    """
    if passes is None:
        return None, steps
    last = passes[-1].steps or steps
    if given is not None and steps != last and all(each.steps for each in passes):
        message = "{field} is of passes that do not say theirs, and all {name[passes]} do, got {given}; leave it out"
        problems.found.extend(RequestError.of("num_inference_steps", message, given=steps).problems)
    filled = tuple(replace(each, steps=each.steps or steps) for each in passes)
    return filled, last


def check_passes(asked: RequestFacts) -> None:
    """Refuse passes, or a share of steps with half of both sides, that cannot be drawn or go with something else."""
    problems = Problems()
    if asked.passes is None or len(asked.passes) == 1:
        problems.check(None, _check_upscale, asked)
    if asked.passes is not None:
        problems.check(None, _check_alone, asked, "passes")
        problems.check(None, _check_lists, asked)
        for index, each in enumerate(asked.passes):
            problems.check(None, _check_pass, asked, index, each)
    if asked.progressive:
        problems.check(None, _check_alone, asked, "progressive")
        problems.check(None, _check_halves, asked)
    problems.raise_if_any()


def _listed(text: str) -> object:
    """What a text says: JSON of a list, or one word."""
    if not text.lstrip().startswith("["):
        return words.read(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _checked(problems: Problems, name: str, index: int, given: object, limits: Limits) -> Pass:
    """One pass; what is wrong with its parts is collected."""
    if isinstance(given, Pass):
        given = {key: getattr(given, key) for key in _KEYS if getattr(given, key) is not None}
    one, known = Item(name, f"[{index}]"), ", ".join(_KEYS)
    if not isinstance(given, Mapping):
        message = "{field} must be a pass, with {known}, got {given}"
        raise RequestError.of(one, message, known=known, given=shown(given))
    if unknown := [str(key) for key in given if key not in _KEYS]:
        message = "{field} has no {unknown}; a pass has {known}"
        raise RequestError.of(one, message, unknown=", ".join(unknown), known=known)
    if "scale" not in given:
        raise RequestError.of(one, "{field} has no scale; give one above 0 and at most 1")

    def number(key: str, otherwise: object, **rules: Any) -> Any:
        value = given.get(key)
        return (
            otherwise
            if value is None
            else problems.check(otherwise, ranged, Item(name, f"[{index}].{key}"), value, **rules)
        )

    steps = given.get("steps")
    if steps is not None:
        item = Item(name, f"[{index}].steps")
        steps = problems.check(1, whole_number, item, steps, low=1, high=limits.max_steps)
    strength = number("strength", 1.0 if index == 0 else DEFAULT_STRENGTH, above=True, high=1.0)
    if index == 0 and strength != 1:
        item = Item(name, "[0].strength")
        message = "{field}: the first pass begins with noise, and has no strength, got {given}; leave it out"
        raise RequestError.of(item, message, given=strength)
    rules = {key: _rules(key) for key in ("shift", "guidance_scale")}
    return Pass(
        scale=number("scale", 1.0, above=True, high=1.0),
        steps=steps or _UNKNOWN_STEPS,
        strength=strength,
        shift=number("shift", None, **rules["shift"]),
        guidance_scale=number("guidance_scale", None, **rules["guidance_scale"]),
    )


def _rules(name: str) -> dict[str, Any]:
    """How the request's own field of that name is checked."""
    kind: Any = ROWS[name].kind
    return {rule: getattr(kind, rule) for rule in ("above", "low", "high", "usual", "float32")}


def _check_upscale(asked: RequestFacts) -> None:
    if asked.upscale != LANCZOS:
        message = "{field} would do nothing; give several {name[passes]} too, or leave it out"
        raise RequestError.of("upscale", message)


def _check_alone(asked: RequestFacts, name: str) -> None:
    """Refuse what begins or ends elsewhere than such a run does."""
    others = {
        "image": "begins with noise alone, and an image is given; leave one out",
        "latents": "draws its noise from {name[seed]}, and {name[latents]} are given; leave one out",
    }
    for other, message in others.items():
        if getattr(asked, other) is not None:
            raise RequestError.of(name, "{field} " + message)
    for other in ("denoising_start", "denoising_end"):
        if getattr(asked, other) != ROWS[other].default:
            raise RequestError.of(name, f"{{field}} and {{name[{other}]}} exclude each other, got both; leave one out")


def _check_lists(asked: RequestFacts) -> None:
    for name, is_list in (("sigmas", asked.sigmas), ("guidance_scale", isinstance(asked.guidance_scale, tuple))):
        if is_list:
            message = "{field} has a number for each step, and {name[passes]} have steps of their own; leave one out"
            raise RequestError.of(name, message)
    if asked.progressive:
        message = "{field} and {name[passes]} exclude each other, got both; leave one out"
        raise RequestError.of("progressive", message)


def _check_pass(asked: RequestFacts, index: int, one: Pass) -> None:
    height, width = one.side(asked.height), one.side(asked.width)
    if min(height, width) < TOKEN_SIDE:
        message = "{field} {given} of {width}x{height} pixels makes {small}, and both sides must be at least {least}"
        small = f"{width}x{height}"
        values = {"given": one.scale, "width": asked.width, "height": asked.height, "small": small, "least": TOKEN_SIDE}
        raise RequestError.of(Item("passes", f"[{index}].scale"), message + "; take a larger one", **values)
    if first_step(one.steps, one.strength) >= one.steps:
        message = "{field} {given} leaves none of the {steps} steps; the smallest that leaves one is {smallest}"
        values = {"given": one.strength, "steps": one.steps, "smallest": smallest_strength(one.steps)}
        raise RequestError.of(Item("passes", f"[{index}].strength"), message, **values)


def _check_halves(asked: RequestFacts) -> None:
    step = 2 * TOKEN_SIDE
    for name in ("height", "width"):
        side = getattr(asked, name)
        if side % step:
            message = "{field} must be a multiple of {step} where {name[progressive]} halves it, got {given}; the "
            message += "nearest are {below} and {above}"
            below = side // step * step
            near = {"below": below or step, "above": below + step}
            raise RequestError.of(name, message, step=step, given=side, **near)
    if asked.half_steps >= asked.num_inference_steps:
        message = "{field} {given} leaves none of the {steps} steps for the whole size; it must be at most {most:.6g}"
        values = {"given": asked.progressive, "steps": asked.num_inference_steps}
        most = (asked.num_inference_steps - 1) / asked.num_inference_steps
        raise RequestError.of("progressive", message, most=most, **values)
