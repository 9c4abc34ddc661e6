"""The process that measures: it does the parts of a few steps, writes their rows, and tells its parent of each.

A part that fails costs its own rows. If the device no longer answers after that, the process ends, and the parent
starts another one for the rest.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_run.results import Results, Row
from benchmarks.gpu_run.steps import WHOLE, Part
from benchmarks.gpu_run.task import AGAIN, Task
from benchmarks.measure import Timing, first_line
from max_zimage.host.lifeline import end_with_parent

if TYPE_CHECKING:
    from benchmarks.gpu_run.bench import Bench


class Worker:
    """Does the parts of a task.

    Args:
        task: What to do.
        tell: Descriptor that the parent reads.
    """

    def __init__(self, task: Task, tell: int) -> None:
        self._task, self._tell = task, tell
        self._results = Results(Path(task.results), small=task.small, commit=task.commit)
        stages = importlib.import_module(task.modules)
        self._bench: Bench = stages.bench(work=Path(task.work), small=task.small, known=self._results.here)

    def run(self) -> int:
        """Do all of it; the process' exit status."""
        for step in self._task.steps:
            begin, parts = time.perf_counter(), self._parts(step)
            for part in parts:
                if not self._do(step, part):
                    return AGAIN
            if parts and all(self._results.done(step, part.name) for part in parts):
                taken = Timing.of([time.perf_counter() - begin])
                self._add(step, WHOLE, [Row(case=step, variant=f"{len(parts)} parts", timing=taken)])
        return 0

    def _parts(self, step: str) -> list[Part]:
        try:
            return list(importlib.import_module(f"{self._task.modules}.{step}").parts(self._bench))
        except Exception as error:  # a package that is not there, in whatever way it shows
            self._failed(step, "all", error)
            return []

    def _do(self, step: str, part: Part) -> bool:
        """Do one part; whether the device still answers."""
        if [step, part.name] in self._task.without:
            return True
        if self._results.done(step, part.name):
            self._say("done before", step, part.name)
            return True
        left = self._task.deadline - time.time()
        if not self._task.small and part.seconds > left:
            said = f"it takes {part.seconds:.0f} s, {max(left, 0):.0f} s are left"
            self._add(step, part.name, [Row(case=part.name, variant="", note=said, state="not begun")])
            return True
        # Small graphs are compiled on the way, which takes as long as it takes.
        self._say("begins", step, part.name, left if self._task.small else part.limit)
        try:
            self._add(step, part.name, part.measure())
        except Exception as error:  # whatever goes wrong in one part must not cost the others
            self._failed(step, part.name, error)
            return self._bench.answers()
        return True

    def _failed(self, step: str, part: str, error: Exception) -> None:
        traceback.print_exc()
        self._add(step, part, [Row(case=part, variant="", note=first_line(error), state="failed")])

    def _add(self, step: str, part: str, rows: Iterable[Row]) -> None:
        self._say("ended", step, part, self._results.add(step, part, rows))

    def _say(self, *words: Any) -> None:
        os.write(self._tell, (json.dumps(words) + "\n").encode())


def main() -> None:
    """Read the task from stdin, whose end is the parent's."""
    task = Task(**json.loads(_line()))
    end_with_parent(0)
    # MAX and its compiler print: what goes to stdout belongs into the log, and what is told into the pipe alone.
    tell = os.dup(1)
    os.dup2(2, 1)
    status = Worker(task, tell).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of MAX's compiler now and then abort a process that ends in the usual way


def _line() -> bytes:
    """A line from stdin and not a byte more: the rest is watched for its end."""
    said = b""
    while not said.endswith(b"\n"):
        read = os.read(0, 1)
        if not read:
            raise SystemExit("the parent is gone")
        said += read
    return said


if __name__ == "__main__":
    main()
