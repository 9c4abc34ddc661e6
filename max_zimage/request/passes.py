"""The passes of a picture: what each is, and how a list of them is written in one word. Imports no numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

DEFAULT_STRENGTH = 0.5
"""How far a pass goes from the picture of the one before, where nothing else is said."""

TOKEN_SIDE = 16
"""Pixels of a picture that a token stands for, on either side: what sides are multiples of."""

_OPTIONS = ("shift", "guidance_scale")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One of the runs that a picture is drawn in, each larger than the one before as a rule.

    Attributes:
        scale: Its sides as a share of the picture's, above 0 and at most 1.
        steps: Of its schedule.
        strength: How far it goes from the picture of the pass before, in (0, 1]; 1 in the first one.
        shift: In place of the request's, or None.
        guidance_scale: In place of the request's, or None.
    """

    scale: float
    steps: int
    strength: float
    shift: float | None = None
    guidance_scale: float | None = None

    def side(self, pixels: int) -> int:
        """A side of its picture, for one of the whole picture's: the share, floored to a multiple of 16.

        The share is taken as the decimal number that it is written as: 0.29 of 1600 is 464 and not a little less, which
        would be floored to 448.
        """
        return int(Fraction(str(self.scale)) * pixels) // TOKEN_SIDE * TOKEN_SIDE


def guidance_scales(passes: Sequence[Pass] | None, scale: float | tuple[float, ...]) -> tuple[float, ...]:
    """The guidance scales of a request: of its steps or passes where these have their own."""
    if passes is None:
        return scale if isinstance(scale, tuple) else (scale,)
    own = {each.guidance_scale for each in passes}
    every = scale if isinstance(scale, tuple) else (scale,)
    return (*(each for each in own if each is not None), *(every if None in own else ()))


def written(passes: Sequence[Pass]) -> str:
    """Passes in one word.

    >>> written([Pass(scale=0.5, steps=9, strength=1.0), Pass(scale=1.0, steps=9, strength=0.5, shift=2.0)])
    '0.5x9,1.0x9:0.5:shift=2.0'
    """
    words = []
    for index, each in enumerate(passes):
        word = f"{each.scale!r}x{each.steps}" + (f":{each.strength!r}" if index else "")
        given = ((name, getattr(each, name)) for name in _OPTIONS)
        words.append(word + "".join(f":{name}={value!r}" for name, value in given if value is not None))
    return ",".join(words)


def read(text: str) -> list[dict[str, object]]:
    """What a word says, as a list of what each pass is given; a number that is none stays a text.

    `SCALE[xSTEPS][:STRENGTH][:NAME=VALUE...]`, one after the other with a comma between.

    >>> read("0.5x9,1.0x9:0.5")
    [{'scale': 0.5, 'steps': 9}, {'scale': 1.0, 'steps': 9, 'strength': 0.5}]
    """
    return [_read_one(word.strip()) for word in text.split(",")]


def _read_one(word: str) -> dict[str, object]:
    size, *rest = word.split(":")
    scale, by, steps = size.partition("x")
    found: dict[str, object] = {"scale": _number(scale)}
    if by:
        found["steps"] = int(steps) if steps.isdecimal() and steps.isascii() and len(steps) < 10 else steps
    for part in rest:
        name, is_named, value = part.partition("=")
        found[name if is_named else "strength"] = _number(value if is_named else part)
    return found


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text
