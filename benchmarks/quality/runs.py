"""Drawing in turn, prompt by prompt, so that a machine that grows slower does so for every setting alike."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import PAUSE_SECONDS
from benchmarks.quality.cases import Case, Prompt
from benchmarks.quality.draws import UNCACHED, Drawn, Group
from benchmarks.quality.scores import Sample, Scorer

Save = Callable[[Sequence[Sample]], None]
"""Keeps the samples of one prompt."""


@dataclass(frozen=True, kw_only=True)
class Competition:
    """What draws the same prompts at the same settings.

    Attributes:
        case: The settings.
        groups: By engine, "" for the project's own; a group's pictures are compared with its uncached one's.
        prompts: How many of the prompts an engine draws; all if it is not there.
    """

    case: Case
    groups: Mapping[str, Group]
    prompts: Mapping[str, int]

    def name(self, engine: str) -> str:
        """Of the rows of one engine, which are comparable."""
        return f"{self.case.name}{engine and ', '}{engine}"

    def due(self, index: int) -> dict[str, Group]:
        """Who draws the prompt of a number."""
        return {engine: group for engine, group in self.groups.items() if index < self.prompts.get(engine, index + 1)}


def run(
    competition: Competition, prompts: Sequence[Prompt], scorer: Scorer, done: Sequence[Sample], save: Save
) -> None:
    """Draw and score what is not done yet.

    Args:
        competition: Who draws, and how.
        prompts: What they draw.
        scorer: Compares pictures.
        done: Samples of an earlier run. A prompt of which any is missing is drawn again.
        save: Gets the samples of each prompt when all have drawn it.
    """
    known: set[tuple[object, ...]] = {
        (sample.case, sample.variant, sample.sizes, sample.prompt, sample.seed) for sample in done
    }
    warm: set[str] = set()
    for index, prompt in enumerate(prompts):
        begin = time.perf_counter()
        due = competition.due(index)
        left = {engine: group for engine, group in due.items() if not _is_known(competition, engine, prompt, known)}
        if not left:
            continue
        for engine, group in left.items():
            if engine not in warm:
                _warm_up(group, prompt)
                warm.add(engine)
        save([sample for engine in left for sample in _draw(competition, engine, prompt, scorer)])
        seconds = time.perf_counter() - begin
        print(f"{competition.case.name}: prompt {index + 1} of {len(prompts)}, {seconds:.0f} s", flush=True)


def _is_known(competition: Competition, engine: str, prompt: Prompt, known: set[tuple[object, ...]]) -> bool:
    name, sizes = competition.name(engine), competition.case.sizes
    return all((name, variant, sizes, prompt.text, prompt.seed) in known for variant in competition.groups[engine])


def _warm_up(group: Group, prompt: Prompt) -> None:
    """One untimed picture of every method, for what compiles or is imported; others differ from it in numbers alone."""
    methods = {re.sub(r"[0-9.]+", "", variant): draw for variant, draw in group.items()}
    for draw in methods.values():
        draw(prompt)


def _draw(competition: Competition, engine: str, prompt: Prompt, scorer: Scorer) -> list[Sample]:
    group, drawn = competition.groups[engine], dict[str, Drawn]()
    for variant in turn(list(group), prompt.seed):
        time.sleep(PAUSE_SECONDS)
        drawn[variant] = group[variant](prompt)
    expected = drawn[UNCACHED].pixels
    name, sizes = competition.name(engine), competition.case.sizes
    return [scorer.sample(name, variant, sizes, prompt, drawn[variant], expected) for variant in group]


def turn(variants: Sequence[str], number: int) -> list[str]:
    """The order of one round; another one begins each time, so that no place in it is anyone's own."""
    start = number % len(variants)
    return [*variants[start:], *variants[:start]]
