"""What a graph launches, and how that is written: equal launches in one line, repeated sequences once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LONGEST = 64
"""Launches of a sequence that is looked for again."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Launches of a graph itself, of a block that it calls, or of one way of a condition.

    Attributes:
        name: The graph's or the block's; of a condition's ways, where that is with ".if" or ".else".
        times: How often it runs in one run of the graph; at most, behind a condition.
        kernels: One a launch, in order: what is fused into it, what decides its kernel, and the type of its result.
    """

    name: str
    times: int
    kernels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Launches:
    """What a graph launches.

    Attributes:
        total: Launches in one run, by the longer way of each condition.
        parts: The graph's own, then those of its blocks and of the ways of its conditions, as they come.
        loading: Kernels that run before, when the graph is loaded.
    """

    total: int
    parts: tuple[Part, ...]
    loading: tuple[str, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Launches:
        """What `dataclasses.asdict` has made of one, after a way through JSON."""
        parts = (Part(**{**part, "kernels": tuple(part["kernels"])}) for part in values["parts"])
        return cls(total=values["total"], parts=tuple(parts), loading=tuple(values["loading"]))


def lines(graph: str, kernels: Launches) -> Iterator[str]:
    """Launches as text: how many a run takes, those of the graph itself, then those of each block."""
    at_most = "at most " if any(part.times and "." in part.name for part in kernels.parts) else ""
    yield f"# {graph}: {at_most}{_launches(kernels.total)}"
    own, *others = kernels.parts
    yield from _folded(own.kernels)
    for part in others:
        yield f"## {part.name}{_often(part)}: {_launches(len(part.kernels))}"
        yield from _folded(part.kernels)
    if kernels.loading:
        yield f"## before, at loading: {_launches(len(kernels.loading))}"
        yield from _folded(kernels.loading)


def _launches(count: int) -> str:
    return f"{count} launch{'es' * (count != 1)}"


def _often(part: Part) -> str:
    return f", {part.times} times" if part.times > 1 else ""


def _folded(items: Sequence[str], indent: str = "") -> Iterator[str]:
    for group, count in _groups(items):
        if len(group) == 1:
            yield f"{indent}{group[0]}{f'  x {count}' if count > 1 else ''}"
        else:
            yield f"{indent}{count} times these {len(group)}:"
            yield from _folded(group, f"{indent}  ")


def _groups(items: Sequence[str]) -> Iterator[tuple[Sequence[str], int]]:
    """Cut a sequence into what repeats, the longest way at each place, and how often."""
    place = 0
    while place < len(items):
        length, count = 1, 1
        for longer in range(1, min(_LONGEST, (len(items) - place) // 2) + 1):
            often = _repeats(items, place, longer)
            if often > 1 and often * longer > length * count:
                length, count = longer, often
        yield items[place : place + length], count
        place += length * count


def _repeats(items: Sequence[str], place: int, length: int) -> int:
    """How often a sequence of some length stands there."""
    first, count = items[place : place + length], 1
    while items[place + count * length : place + (count + 1) * length] == first:
        count += 1
    return count
