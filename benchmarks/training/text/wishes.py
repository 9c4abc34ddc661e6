"""What a caption says, what a short prompt asks for, and whether the one keeps the other.

The captions are those of `benchmarks.training.scenes` in one form of the four: an article, the words of an object, what
comes beside it and the ground. A combination of colour, shape and ground that the image model never saw in its training
is in no caption that this model learns from, either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.training.scenes import RELATIONS, Objects, held_out
from tests.references.scenes import COLORS, SHAPES, SIZES


class Look(NamedTuple):
    """An object in words; in a prompt None is what was not said.

    Attributes:
        size: "small", "large", or "" for the one between, which no word asks for.
        color: One of `COLORS`.
        shape: One of `SHAPES`.
    """

    size: str | None
    color: str | None
    shape: str | None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One object or two on a ground; in a prompt None is what was not said.

    Attributes:
        objects: In the caption's order. In a prompt none stands for any number of them.
        relation: One of `RELATIONS` between two objects.
        ground: One of `COLORS`.
    """

    objects: tuple[Look, ...]
    relation: str | None = None
    ground: str | None = None


_OBJECT = rf"(an?) (?:({'|'.join(filter(None, SIZES))}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_GRAMMAR = re.compile(rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT})? on (an?) ({'|'.join(COLORS)}) background")


def article(word: str) -> str:
    """The one that goes before a word."""
    return "an" if word[0] in "aeiou" else "a"


def caption_of(wish: Wish) -> str:
    """The caption of a wish in which everything is said."""
    objects = [f"{article(named)} {named}" for named in (" ".join(filter(None, look)) for look in wish.objects)]
    return f"{f' {wish.relation} '.join(objects)} on {article(wish.ground or '')} {wish.ground} background"


def read(caption: str) -> Wish | None:
    """What a caption says, whatever its articles; None if it is none."""
    found = _GRAMMAR.fullmatch(caption)
    if found is None:
        return None
    _, size, color, shape, relation, _, other_size, other_color, other_shape, _, ground = found.groups()
    looks = [Look(size or "", color, shape)]
    if relation:
        looks.append(Look(other_size or "", other_color, other_shape))
    return Wish(objects=tuple(looks), relation=relation, ground=ground)


def keeps(wish: Wish, asked: Wish) -> bool:
    """Whether a caption says all that was asked for, and has as many objects."""
    if asked.objects and len(asked.objects) != len(wish.objects):
        return False
    pairs = [(asked.relation, wish.relation), (asked.ground, wish.ground)]
    for theirs, ours in zip(asked.objects, wish.objects, strict=False):
        pairs += zip(theirs, ours, strict=True)
    return all(theirs is None or theirs == ours for theirs, ours in pairs)


def apart(wish: Wish) -> bool:
    """Whether no object has its ground's colour."""
    return all(look.color != wish.ground for look in wish.objects)


def random_wish(chance: np.random.Generator, objects: Objects, *, unseen: bool = False) -> Wish:
    """Everything said, evenly from what there is.

    Args:
        chance: Where from.
        objects: How many. One has a size, two have none, as in the image model's training.
        unseen: Only combinations that training never shows, or only those that it does.
    """
    while True:
        ground = one_of(chance, COLORS)
        others = [color for color in COLORS if color != ground]
        size = one_of(chance, SIZES) if objects == 1 else ""
        looks = tuple(Look(size, one_of(chance, others), one_of(chance, SHAPES)) for _ in range(objects))
        if all(held_out(str(look.color), str(look.shape), ground) == unseen for look in looks):
            return Wish(objects=looks, relation=one_of(chance, RELATIONS) if objects == 2 else None, ground=ground)


def partly(chance: np.random.Generator, wish: Wish) -> Wish:
    """A part of a wish, as a short prompt asks for it: two objects keep their shapes, one may keep nothing."""
    if len(wish.objects) == 2:
        looks = tuple(replace_color(look, chance.random() < 0.65) for look in wish.objects)
        relation = wish.relation if chance.random() < 0.75 else None
    else:
        (look,), relation = wish.objects, None
        shape = look.shape if chance.random() < 0.92 else None
        color = look.color if chance.random() < (0.65 if shape else 0.85) else None
        size = look.size if look.size and chance.random() < 0.6 else None
        looks = (Look(size, color, shape),)
    return replace(wish, objects=looks, relation=relation, ground=wish.ground if chance.random() < 0.45 else None)


def replace_color(look: Look, kept: bool) -> Look:
    """An object of two in a prompt: without a word for its size, with or without its colour."""
    return Look(None, look.color if kept else None, look.shape)


def said(wish: Wish) -> Wish:
    """A wish as a prompt can say it: the size between has no word."""
    return replace(wish, objects=tuple(look._replace(size=look.size or None) for look in wish.objects))


def one_of(chance: np.random.Generator, choices: Any) -> Any:
    """One of them, each as likely."""
    listed = list(choices)
    return listed[int(chance.integers(len(listed)))]
