"""Short prompts as people type them: a few words for a part of a scene, in any order, now and then with a slip."""

from __future__ import annotations

import numpy as np

from benchmarks.training.text.wishes import Look, Wish, article, one_of, partly, random_wish, said
from tests.references.scenes import COLORS, SHAPES

_WORDS_FOR = {
    "gray": ("gray", "gray", "grey"),
    "large": ("large", "large", "big"),
    "small": ("small", "small", "tiny", "little"),
    "to the left of": ("to the left of", "left of", "on the left of"),
    "above": ("above", "above", "over"),
    "and": ("and", "and", "with", "&"),
}
_OTHER_WAY_ROUND = {"to the left of": ("to the right of", "right of"), "above": ("below", "under")}
_OPENINGS = ("a picture of ", "picture of ", "draw ", "show ")
_ALL = {*COLORS, *SHAPES, *(word for words in _WORDS_FOR.values() for word in words)}


def random_pair(chance: np.random.Generator, vague: float = 0.0) -> tuple[str, Wish]:
    """A prompt of any kind, and a full wish that it may stand for.

    Args:
        chance: Where from.
        vague: Share of prompts of which half are empty, and the others name shapes alone.
    """
    objects = one_of(chance, (1, 2, 2))
    wish = random_wish(chance, objects)
    if vague and chance.random() < vague:
        shapes = [str(look.shape) for look in wish.objects]
        return one_of(chance, ("", one_of(chance, (" ", ", ", " and ")).join(shapes))), wish
    if chance.random() < 0.03:
        return "", wish
    asked = said(wish) if chance.random() < 0.2 else partly(chance, wish)
    prompt = phrase(chance, asked)
    return (mistyped(chance, prompt) if chance.random() < 0.2 else prompt), wish


def phrase(chance: np.random.Generator, asked: Wish, *, reverse: bool | None = None) -> str:
    """A prompt that asks for no more and no less.

    Args:
        chance: Where from.
        asked: What is said in it.
        reverse: Whether two objects stand the other way round ("below" for "above"); None leaves it to chance.
    """
    beside = "" if asked.relation else one_of(chance, (" ", ", "))
    # In "star red ring" the colour is the ring's: an object's words change places only where its end is to be seen.
    looks = [_object(chance, look, shuffled=len(asked.objects) == 1 or beside != " ") for look in asked.objects]
    text = looks[0]
    if len(looks) == 2:
        turned = _OTHER_WAY_ROUND.get(asked.relation or "")
        if turned and (reverse or (reverse is None and chance.random() < 0.15)):
            text = f"{looks[1]} {one_of(chance, turned)} {looks[0]}"
        elif asked.relation:
            text = f"{looks[0]} {one_of(chance, _WORDS_FOR[asked.relation])} {looks[1]}"
        else:
            text = f"{looks[0]}{beside}{looks[1]}"
    if chance.random() < 0.06:
        text = one_of(chance, _OPENINGS) + text
    return _on_ground(chance, text, asked.ground).strip()


def _object(chance: np.random.Generator, look: Look, *, shuffled: bool) -> str:
    words = [one_of(chance, _WORDS_FOR.get(word, (word,))) for word in look if word]
    if shuffled and len(words) > 1 and chance.random() < 0.2:
        return " ".join(words[place] for place in chance.permutation(len(words)))
    if words and look.shape and chance.random() < 0.06:
        words[-1] += "es" if words[-1].endswith("ss") else "s"
    elif words and look.shape and chance.random() < 0.4:
        words.insert(0, article(words[0]))
    return " ".join(words)


def _on_ground(chance: np.random.Generator, text: str, ground: str | None) -> str:
    if ground is None:
        return text
    word = one_of(chance, _WORDS_FOR.get(ground, (ground,)))
    if not text.strip():
        return one_of(chance, (f"on {word}", f"{word} background", f"on {article(word)} {word} background"))
    ways = (
        f"{text} on {word}",
        f"{text} on {word} background",
        f"{text} on {article(word)} {word} background",
        f"{text}, {word} background",
        f"{text} {word} background",
        f"{word} background, {text}",
    )
    return one_of(chance, ways)


def mistyped(chance: np.random.Generator, prompt: str) -> str:
    """A capital, a full stop, or a letter left out, doubled or exchanged with the next."""
    kind = chance.random()
    if kind < 0.25:
        return prompt[:1].upper() + prompt[1:]
    if kind < 0.4:
        return f"{prompt}."
    words = prompt.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long:
        return prompt
    place = one_of(chance, long)
    word = words[place]
    at = int(chance.integers(1, len(word) - 1))
    changed = one_of(
        chance,
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        ),
    )
    if changed in _ALL:
        return prompt
    return " ".join([*words[:place], changed, *words[place + 1 :]])
