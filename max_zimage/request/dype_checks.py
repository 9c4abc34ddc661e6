"""Whether what a request says of position extrapolation does anything."""

from __future__ import annotations

import dataclasses
import warnings

from max_zimage.errors import Problem, RequestError, RequestWarning
from max_zimage.request.dype_fields import DYPE_METHODS, DYPE_OFF, VISION_YARN, DypeFields
from max_zimage.request.facts import RequestFacts

_DEFAULTS = {field.name: field.metadata["row"].default for field in dataclasses.fields(DypeFields)}


def check_dype(asked: RequestFacts) -> None:
    """Refuse fields that would do nothing. The method itself may: it is there for pictures of any size.

    Args:
        asked: The request.
    """
    changed = [name for name, value in _DEFAULTS.items() if name != "dype" and getattr(asked, name) != value]
    if asked.dype == DYPE_OFF and changed:
        message = "{field} would do nothing; set {name[dype]} to {methods} too, or leave it out"
        raise RequestError.of(changed[0], message, methods=", ".join(DYPE_METHODS))
    if asked.dype != VISION_YARN and "dype_start_sigma" in changed:
        message = "{field} is a number of {method}, and {name[dype]} is {given}; take {method}, or leave {field} out"
        raise RequestError.of("dype_start_sigma", message, method=VISION_YARN, given=asked.dype)


def warn_of_small_picture(asked: RequestFacts) -> None:
    """Say so where a picture is too small for position extrapolation to change it."""
    longest = max(asked.height, asked.width)
    if asked.dype != DYPE_OFF and longest <= asked.dype_base_resolution:
        message = "{field} {method} changes nothing here: no side is longer than {name[dype_base_resolution]}, {base}"
        problem = Problem.of("dype", message, method=asked.dype, base=asked.dype_base_resolution)
        warnings.warn(RequestWarning(problem), stacklevel=3)
