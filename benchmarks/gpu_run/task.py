"""What a parent and its child tell each other.

parent -> a `Task` on one line, then silence as long as it lives -> child
child -> ["begins", step, part, seconds], ["ended", step, part, rows], ["done before", step, part] -> parent
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

AGAIN = 4
"""Exit status of a child whose device no longer answers: another one is to do the rest."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a child is told.

    Attributes:
        steps: Names of steps.
        modules: The package whose modules have these names.
        without: Steps and parts at which an earlier child has come to grief.
        work: Folder of what is kept between steps.
        results: The CSV file.
        small: Whether sizes are small and everything runs on the CPU.
        commit: Of what is measured, where there is no checkout to ask.
        deadline: In `time.time()`'s seconds: no part is begun that would end later.
    """

    steps: list[str]
    modules: str
    without: list[list[str]]
    work: str
    results: str
    small: bool
    commit: str
    deadline: float

    def line(self) -> str:
        """As it goes to the child."""
        return json.dumps(asdict(self)) + "\n"
