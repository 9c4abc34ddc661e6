"""The parent: it starts a process for some steps at a time, follows it part by part, and ends it when one overruns."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_run.results import Results, Row, State
from benchmarks.gpu_run.steps import STEPS, WHOLE, groups
from benchmarks.gpu_run.task import AGAIN, Task
from benchmarks.measure import ROOT

STAGES = "benchmarks.gpu_run.stages"
_BETWEEN = 90.0
"""Seconds that a child may be silent between parts: it imports MAX and torch, perhaps from a cold disk."""

Line = dict[str, str]


@dataclass
class Outcome:
    """How a child ended.

    Attributes:
        state: Of what it was at, "ok" where nothing was lost.
        why: In words.
        within: Step and part that it was at; None between parts.
        last: Step and part that it ended last.
        lines: The rows that it wrote.
    """

    state: State = "ok"
    why: str = ""
    within: list[str] | None = None
    last: list[str] | None = None
    lines: list[Line] = field(default_factory=list)


class Watch:
    """Does steps within a budget.

    Args:
        results: Where rows go.
        work: Folder of what is kept between steps, and of the children's logs.
        deadline: In `time.time()`'s seconds.
        small: See `task.Task`.
        modules: See `task.Task`.
    """

    def __init__(self, results: Results, *, work: Path, deadline: float, small: bool, modules: str = STAGES) -> None:
        self.results, self.lines, self._work = results, list[Line](), work
        self._task = Task(
            steps=[],
            modules=modules,
            without=[],
            work=str(work),
            results=str(results.path),
            small=small,
            commit=str(results.conditions["commit"]),
            deadline=deadline,
        )

    def run(self, names: Sequence[str]) -> bool:
        """Do steps; whether all of them came to their end and nothing failed."""
        done = [name for name in names if self.results.done(name, WHOLE)]
        for name in done:
            say(f"{name}: done before")
        for group in groups([name for name in names if name not in done]):
            self._group(self._affordable(group))
        return all(line["state"] in ("ok", "skipped") for line in self.lines)

    def _affordable(self, names: list[str]) -> list[str]:
        """Steps that there is time for; of small ones it is not known what they take."""
        left, affordable = self._task.deadline - time.time(), []
        for name in names:
            needed = 0.0 if self._task.small else STEPS[name].seconds
            if needed > left:
                self._add(name, "all", "not begun", f"it takes {needed:.0f} s, {max(left, 0):.0f} s are left")
            else:
                affordable.append(name)
                left -= needed
        return affordable

    def _group(self, names: list[str]) -> None:
        """Do steps in one process, and what is left in another one when that has come to grief at a part."""
        without: list[list[str]] = []
        while names:
            outcome = self._child(replace(self._task, steps=names, without=without))
            self.lines += outcome.lines
            if outcome.state == "ok":
                return
            stopped = outcome.within or outcome.last
            if outcome.state != "not begun":  # the device has gone, and the rows of why are written
                step, part = outcome.within or [names[0], "all"]
                self._add(step, part, outcome.state, outcome.why)
            if stopped is None or time.time() >= self._task.deadline:
                return
            without.append(stopped)
            names = names[names.index(stopped[0]) :]

    def _child(self, task: Task) -> Outcome:
        """Start a child and follow it to its end."""
        log = self._work / f"{task.steps[0]}.log"
        with log.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu_run.child"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                bufsize=0,
                process_group=0,
            )
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended; its status and its log say why
                child.stdin.write(task.line().encode())
            outcome = self._follow(child, task.deadline)
        finally:
            _end(child)
            self.results.scratch(child.pid).unlink(missing_ok=True)
        if outcome.state == "failed":
            outcome.why += _last_words(log)
        return outcome

    def _follow(self, child: subprocess.Popen[bytes], deadline: float) -> Outcome:
        outcome, rest, begun = Outcome(), b"", time.time()
        assert child.stdout is not None
        until = min(begun + _BETWEEN, deadline)
        while select.select([child.stdout], [], [], max(until - time.time(), 0))[0]:
            read = os.read(child.stdout.fileno(), 1 << 16)
            if not read:
                status = child.wait()
                if status:
                    outcome.state = "not begun" if status == AGAIN else "failed"
                    outcome.why = f"its process ended with status {status}"
                return outcome
            *said, rest = (rest + read).split(b"\n")
            for line in said:
                begun = time.time()
                until = min(begun + self._heard(outcome, *json.loads(line)), deadline)
        outcome.state, outcome.why = "cut", f"cut after {time.time() - begun:.0f} s"
        return outcome

    def _heard(self, outcome: Outcome, what: str, step: str, part: str, more: Any = None) -> float:
        """Take what a child says; the seconds that it may be silent from now on."""
        say(f"{step}: {part}: {what}")
        if what == "begins":
            outcome.within = [step, part]
            return float(more)
        outcome.within, outcome.last = None, [step, part]
        for line in more or ():
            outcome.lines.append(line)
            say(f"    {told(line)}")
        return _BETWEEN

    def _add(self, step: str, part: str, state: State, why: str) -> None:
        say(f"{step}: {part}: {state}: {why}")
        self.lines += self.results.add(step, part, [Row(case=part, variant="", note=why, state=state)])


def say(text: str) -> None:
    """Tell the time and something."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def told(line: Line) -> str:
    """A row in words."""
    shown = ("case", "variant", "sizes", "median_s", "gflop_per_s", "relative_l2", "speedup", "value", "note")
    said = [line["case"], line["variant"], line["sizes"]]
    said += [f"{name} {line[name]}" for name in shown[3:] if line[name]]
    said += [f"expected {line['expected']}: {line['verdict']}"] if line["expected"] else []
    return ", ".join(filter(None, said))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _last_words(log: Path) -> str:
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f": {said[-1]}"[:200] if said else ""
