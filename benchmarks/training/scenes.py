"""Random scenes with their captions, and which of them the model never sees.

A scene is one object in the middle, or two beside or above each other, as `tests.references.scenes.render` paints them.
About a tenth of the combinations of colour, shape and ground is kept out of training: what is drawn well there was not
learned by heart.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tests.references.scenes import COLORS, SHAPES, SIZES, SceneObject, render

PAIR_RADIUS = 0.185
"""Of each of two objects, as a share of the shorter side; about their centres at a quarter and three quarters."""

RELATIONS = ("to the left of", "above", "and")
Objects = Literal[1, 2]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows, and how it is asked for.

    Attributes:
        caption: As a person would write it.
        objects: Colour, shape, place and size of each.
        ground: Colour behind them.
    """

    caption: str
    objects: tuple[SceneObject, ...]
    ground: str

    def painted(self, height: int, width: int) -> npt.NDArray[np.uint8]:
        """The picture, uint8 [height, width, 3]."""
        return render(list(self.objects), self.ground, height, width)


def held_out(color: str, shape: str, ground: str) -> bool:
    """Whether training never shows this combination; one in ten or so, the same ones in every process."""
    return zlib.crc32(f"{color}/{shape}/{ground}".encode()) % 10 == 0


def random_scene(chance: np.random.Generator, objects: Objects, *, unseen: bool) -> Scene:
    """Draw a scene.

    Args:
        chance: Where from.
        objects: How many.
        unseen: Only combinations that training never shows, or only those that it does.
    """
    while True:
        ground = _one_of(chance, list(COLORS))
        others = [color for color in COLORS if color != ground]
        looks = [(_one_of(chance, others), _one_of(chance, list(SHAPES))) for _ in range(objects)]
        if all(held_out(*look, ground) == unseen for look in looks):
            break
    return _one(chance, *looks[0], ground) if objects == 1 else _two(chance, looks[0], looks[1], ground)


def _one(chance: np.random.Generator, color: str, shape: str, ground: str) -> Scene:
    size = _one_of(chance, list(SIZES))
    named = f"{size} {color} {shape}".strip()
    behind = f"{_article(ground)} {ground} background"
    caption = _one_of(
        chance,
        [
            f"{_article(named)} {named} on {behind}",
            f"{named} on {ground}",
            f"{_article(named)} {named}, {ground} background",
            f"a picture of {_article(named)} {named} on {behind}",
        ],
    )
    place = (0.5 + chance.uniform(-0.04, 0.04), 0.5 + chance.uniform(-0.04, 0.04))
    radius = SIZES[size] * chance.uniform(0.94, 1.06)
    return Scene(caption=caption, objects=((color, shape, place, radius),), ground=ground)


def _two(chance: np.random.Generator, first: tuple[str, str], second: tuple[str, str], ground: str) -> Scene:
    relation = _one_of(chance, list(RELATIONS))
    behind = _one_of(chance, [f" on {_article(ground)} {ground} background", f" on {ground}", f", {ground} background"])
    names = [f"{_article(color)} {color} {shape}" for color, shape in (first, second)]
    radius = PAIR_RADIUS * chance.uniform(0.94, 1.06)
    objects = []
    for (color, shape), along in zip((first, second), (0.25, 0.75), strict=True):
        along, across = along + chance.uniform(-0.015, 0.015), 0.5 + chance.uniform(-0.03, 0.03)
        objects.append((color, shape, (across, along) if relation == "above" else (along, across), radius))
    return Scene(caption=f"{names[0]} {relation} {names[1]}{behind}", objects=tuple(objects), ground=ground)


def _one_of(chance: np.random.Generator, choices: list[str]) -> str:
    return choices[int(chance.integers(len(choices)))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
