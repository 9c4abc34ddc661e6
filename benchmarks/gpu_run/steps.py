"""The steps, what each is for and how long it takes, the most valuable first.

A step's module has `parts(bench)`, which lists what is measured or done at once: a part's rows are written when it
ends, and only whole parts are kept, skipped and cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu_run.results import Row


@dataclass(frozen=True, kw_only=True)
class Step:
    """What `python -m benchmarks.gpu_run NAME` does.

    Attributes:
        what: In words.
        seconds: That it takes on an H200 with all artifacts at hand: it is not begun when fewer are left.
        process: Steps with the same word that follow each other share a process, and what that has loaded.
    """

    what: str
    seconds: float
    process: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is kept, skipped or cut as one.

    Attributes:
        name: Within its step.
        seconds: That it takes; it is not begun when fewer are left, and cut after three times as many and half a
            minute.
        measure: Makes its rows; what it raises becomes a row.
    """

    name: str
    seconds: float
    measure: Callable[[], Iterable[Row]]

    @property
    def limit(self) -> float:
        """Seconds after which the part is cut."""
        return 3 * self.seconds + 30


STEPS = {
    "machine": Step(what="what card it is, and the rates of a copy and of a product", seconds=15, process="graphs"),
    "ops": Step(what="own ops, attention and the whole block against float64", seconds=50, process="graphs"),
    "block": Step(what="a block in every variant, and each of its pieces alone", seconds=50, process="graphs"),
    "decode": Step(what="the autoencoder's decoder against float32, and its time", seconds=35, process="graphs"),
    "checkpoint": Step(what="the checkpoint that a writer in the background is at", seconds=30, process="pictures"),
    "pictures": Step(what="Turbo from prompt to picture, and each graph's share", seconds=70, process="pictures"),
    "replay": Step(what="steps and text encoder replayed as device graphs", seconds=40, process="pictures"),
    "peers": Step(what="diffusers, eager and compiled, on the same weights and noise", seconds=150, process="peers"),
    "products": Step(what="the block's products by each algorithm that cublasLt proposes", seconds=25, process="rest"),
    "fp8": Step(what="the same products in float8 with a scale per row", seconds=15, process="rest"),
    "weights": Step(what="whether two models share the weights that are on the card", seconds=15, process="rest"),
    "counters": Step(what="hardware counters of attention and of the own ops", seconds=40, process="counters"),
    "tests": Step(what="the tests that need a GPU", seconds=120, process="tests"),
}
"""All steps in the order of their worth, which is that of `all`."""
WHOLE = "whole"
"""Part that a step has when all its parts are done."""


def groups(names: Sequence[str]) -> list[list[str]]:
    """Steps in the order of their worth, those that share a process together."""
    found: list[list[str]] = []
    for name in (name for name in STEPS if name in names):
        if found and STEPS[found[-1][-1]].process == STEPS[name].process:
            found[-1].append(name)
        else:
            found.append([name])
    return found
