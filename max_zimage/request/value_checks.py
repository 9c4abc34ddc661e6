"""Checks of words, switches and lists; see `max_zimage.request.checks`."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np

from max_zimage.errors import Item, RequestError
from max_zimage.request.checks import number, ranged, shown, whole_number
from max_zimage.sampling.other_names import sampler_of, shape_of
from max_zimage.sampling.ranges import MAX_SEED

_LONGEST = 60  # letters of a word that is looked for among others


def one_of(name: str, value: object, words: tuple[str, ...]) -> str:
    """Return a word that is one of several."""
    if not isinstance(value, str) or value not in words:
        near = meant(value, words) if isinstance(value, str) else None
        message = "{field} must be one of {words}, got {given}" + ("; did you mean {near}?" if near else "")
        raise RequestError.of(name, message, words=", ".join(words), given=shown(value), near=near)
    return value


def meant(word: str, words: Iterable[str]) -> str | None:
    """Which of several words another one stands for: what another program calls it, or the nearest; None for none.

    >>> meant("euler_a", ("euler", "euler_ancestral")), meant("hein", ("euler", "heun")), meant("x", ("euler", "heun"))
    ('euler_ancestral', 'heun', None)
    """
    known, short = list(words), word[:_LONGEST]
    for found in (sampler_of(short)[0], shape_of(short)):
        if found in known:
            return found
    return next(iter(get_close_matches(short, known, 1)), None)


def seed(name: str, value: object, noise: object) -> int:
    """Return a seed.

    Args:
        name: The field.
        value: What was given. Of a whole number out of range it is said what it means elsewhere.
        noise: Who draws by it, checked or not.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or 0 <= value <= MAX_SEED:
        return whole_number(name, value, low=0, high=MAX_SEED)
    message = "{field} must be from {low} to {high}, got {given}"
    if value == -1:
        message += "; leave it out for a random one"
    elif noise == "torch":
        message += "; torch looks at the lowest 32 bits alone, and draws the same for {same}"
    raise RequestError.of(name, message, low=0, high=MAX_SEED, given=int(value), same=int(value) % 2**32)


def switch(name: str, value: object) -> bool:
    """Return true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise RequestError.of(name, "{field} must be true or false, got {given}", given=shown(value))
    return bool(value)


def inner(name: str, value: object) -> float:
    """Return a number above 0 and below 1."""
    try:
        found = number(name, value)
    except RequestError:  # it would say another range
        found = 0.0
    if not 0 < found < 1:
        raise RequestError.of(name, "{field} must be a number above 0 and below 1, got {given}", given=shown(value))
    return found


def pair(name: str, value: object) -> tuple[float, ...]:
    """Return two shares, from 0 to 1."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        message = "{field} must be two numbers from 0 to 1, got {given}"
        raise RequestError.of(name, message, given=shown(value))
    return tuple(ranged(Item(name, f"[{index}]"), each, high=1.0) for index, each in enumerate(value))


def margins(name: str, value: object, across: int, upright: int) -> tuple[int, ...]:
    """Return four whole numbers, pixels to the left, at the top, to the right and at the bottom."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        message = "{field} must be four whole numbers, pixels to the left, top, right and bottom, got {given}"
        raise RequestError.of(name, message, given=shown(value))
    most = (across, upright, across, upright)
    sides = tuple(whole_number(Item(name, f"[{at}]"), each, low=0, high=most[at]) for at, each in enumerate(value))
    if not any(sides):
        raise RequestError.of(name, "{field} adds no pixel to any side; give some, or leave it out")
    return sides


def wholes(name: str, value: object, count: int) -> tuple[int, ...]:
    """Return whole numbers from 0 to below `count`, sorted and each once."""
    if not isinstance(value, (list, tuple)) or not value:
        message = "{field} must be a list of whole numbers from 0 to {most}, got {given}"
        raise RequestError.of(name, message, most=count - 1, given=shown(value))
    return tuple(
        sorted({whole_number(Item(name, f"[{at}]"), each, low=0, high=count - 1) for at, each in enumerate(value)})
    )
