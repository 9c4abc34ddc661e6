"""What a request says of its passes, read and checked; whether they can be drawn, `passes_checks` says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from max_zimage.errors import Item, RequestError
from max_zimage.request import passes as words
from max_zimage.request.checks import Problems, ranged, shown, whole_number
from max_zimage.request.guidance_fields import MAX_GUIDANCE
from max_zimage.request.limits import Limits
from max_zimage.request.passes import DEFAULT_STRENGTH, Pass
from max_zimage.sampling.ranges import MAX_SHIFT, MIN_SHIFT

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


def with_steps(problems: Problems, passes: Sequence[Pass] | None, given: object, steps: int) -> dict[str, Any]:
    """The request's attributes `passes`, which all have steps, and `num_inference_steps`, those of the last one.

    Args:
        problems: Collects what is wrong.
        passes: From `checked_passes`, or None.
        given: What the request says of its steps; None for nothing.
        steps: The same, checked, or the default.
    """
    if passes is None:
        return {"passes": None}
    last = passes[-1].steps or steps
    if given is not None and steps != last and all(each.steps for each in passes):
        message = "{field} is for passes that do not say theirs, and all {name[passes]} do, got {given}; leave it out"
        problems.found.extend(RequestError.of("num_inference_steps", message, given=steps).problems)
    filled = tuple(replace(each, steps=each.steps or steps) for each in passes)
    return {"passes": filled, "num_inference_steps": last}


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
    return Pass(
        scale=number("scale", 1.0, above=True, high=1.0),
        steps=steps or _UNKNOWN_STEPS,
        strength=strength,
        shift=number("shift", None, above=True, low=MIN_SHIFT, high=MAX_SHIFT, usual="1 to 10"),
        guidance_scale=number("guidance_scale", None, high=MAX_GUIDANCE, usual="0 to 10", float32=True),
    )
