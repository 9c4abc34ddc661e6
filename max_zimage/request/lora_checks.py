"""Checks of the adapters that a request names: files that are there, and scales that are numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np

from max_zimage.errors import Item, RequestError
from max_zimage.request.checks import LARGEST, SMALLEST, Problems, shown, text_of
from max_zimage.request.loras import USUAL_SCALE, Lora, LoraFiles, digest_of

MOST = 32
"""Adapters of a request."""


def checked_loras(name: str, value: object, files: LoraFiles) -> tuple[Lora, ...]:
    """Return adapters, with the digests of their files.

    Args:
        name: The field.
        value: A list of files, of pairs of a file and a scale, or of mappings with name and scale.
        files: Where they may come from.

    Raises:
        RequestError: With all that is wrong.
    """
    if not isinstance(value, (list, tuple)):
        message = '{field} must be a list such as ["style.safetensors", ("other.safetensors", 0.8)], got {given}'
        raise RequestError.of(name, message, given=shown(value))
    if len(value) > MOST:
        raise RequestError.of(
            name, "{field} may hold {most} adapters at most, got {given}", most=MOST, given=len(value)
        )
    problems = Problems()
    found = [problems.check(None, _one, name, index, each, files) for index, each in enumerate(value)]
    problems.raise_if_any()
    return tuple(each for each in found if each is not None)


def _one(name: str, index: int, given: object, files: LoraFiles) -> Lora:
    if isinstance(given, Lora):
        return given
    file, scale = _parts(Item(name, f"[{index}]"), given)
    problems = Problems()
    number = problems.check(USUAL_SCALE, _scale, Item(name, f"[{index}].scale"), scale)
    path = problems.check(None, files.find, Item(name, f"[{index}]"), file)
    problems.raise_if_any()
    assert path is not None
    try:
        return Lora(path=os.path.abspath(path), scale=number, digest=digest_of(path))
    except OSError as error:
        message = "{field}: {given} cannot be read: {reason}"
        reason = error.strerror or type(error).__name__
        raise RequestError.of(Item(name, f"[{index}]"), message, given=path.name, reason=reason) from error


def _parts(item: Item, given: object) -> tuple[str, object]:
    """The file and the scale of one adapter, as they were given."""
    file: object = given
    scale: object = USUAL_SCALE
    if isinstance(given, Mapping):
        if unknown := [str(key) for key in given if key not in ("name", "scale")]:
            message = "{field} has no {unknown}; an adapter has name and scale"
            raise RequestError.of(item, message, unknown=", ".join(unknown))
        file, scale = given.get("name"), given.get("scale", USUAL_SCALE)
    elif isinstance(given, (list, tuple)) and len(given) == 2:
        file, scale = given
    if not isinstance(file, (str, os.PathLike)) or not isinstance(os.fspath(file), str):
        message = "{field} must be a file, or a file and a scale, got {given}"
        raise RequestError.of(item, message, given=shown(given))
    text = os.fspath(file)
    if not text or "\0" in text:
        raise RequestError.of(item, "{field} must name a file, got {given}", given=shown(text))
    return text_of(item, text), scale  # a picture remembers it


def _scale(item: Item, value: object) -> float:
    """Return a finite number of either sign."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise RequestError.of(item, "{field} must be a finite number, got {given}", given=shown(value))
    try:
        scale = float(value)
    except OverflowError:  # a whole number beyond what a float can hold
        scale = math.inf
    # Weights are float32 where it is applied, which it must neither vanish in nor overflow.
    if scale and not SMALLEST <= abs(scale) <= LARGEST:
        message = "{field} must be 0, or from {low:.3g} to {high:.3g} either way, got {given}; 1 is as it was trained"
        raise RequestError.of(item, message, low=SMALLEST, high=LARGEST, given=shown(value))
    return scale
