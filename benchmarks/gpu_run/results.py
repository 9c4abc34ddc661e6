"""The rows of all runs in one CSV file: each with its conditions and what was expected, written as soon as it is known.

The file is also the memory of what is done: a part whose rows are there, of the same commit, card and sizes, is not
measured again. A row replaces an older one of the same name, so that a failure goes when its part is done after all.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from benchmarks.gpu_run.expected import judged
from benchmarks.measure import Conditions, Timing, ask

State = Literal["ok", "skipped", "failed", "cut", "not begun"]
"""What became of a part; the first two are final."""

_SMI = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "celsius": "temperature.gpu",
    "throttled": "clocks_throttle_reasons.active",
}
"""Column -> what nvidia-smi calls it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure with what belongs to it.

    Attributes:
        case: What was done; rows of one case are comparable.
        variant: Who did it, and how.
        dtype: Of what was computed.
        sizes: In words.
        timing: Seconds of a call.
        gflop: Work of a call, in 10^9 operations.
        gbyte: What a call reads and writes at least, in 10^9 bytes.
        speedup: How many times faster than what the note names.
        peak_mib: Memory.
        psnr_db: Of a picture against the one that the note names.
        max_abs: Largest difference to the reference.
        relative_l2: Norm of that difference, relative to the reference's.
        allowed: Largest `relative_l2` that is right; the part has failed where it is more.
        value: A figure that is none of these; the note says of what.
        note: What else is to be said, such as the first line of a failure.
        state: Of the part.
    """

    case: str
    variant: str
    dtype: str = ""
    sizes: str = ""
    timing: Timing | None = None
    gflop: float | None = None
    gbyte: float | None = None
    speedup: float | None = None
    peak_mib: float | None = None
    psnr_db: float | None = None
    max_abs: float | None = None
    relative_l2: float | None = None
    allowed: float | None = None
    value: float | None = None
    note: str = ""
    state: State = "ok"

    @property
    def figures(self) -> dict[str, float | None]:
        """What can be expected of the row, by column."""
        seconds = None if self.timing is None else self.timing.median
        return {
            "median_s": seconds,
            "gflop_per_s": None if seconds is None or self.gflop is None else self.gflop / seconds,
            "gbyte_per_s": None if seconds is None or self.gbyte is None else self.gbyte / seconds,
            "speedup": self.speedup,
            "peak_mib": self.peak_mib,
            "psnr_db": self.psnr_db,
            "max_abs": self.max_abs,
            "relative_l2": self.relative_l2,
            "value": self.value,
        }


_PLACE = ("commit", "gpu", "cpu", "small")
COLUMNS = (
    *("step", "part", "state", "case", "variant", "dtype", "sizes"),
    *("n", "median_s", "p20_s", "p80_s", "expected", "verdict"),
    *("gflop_per_s", "gbyte_per_s", "speedup", "peak_mib", "psnr_db", "max_abs", "relative_l2", "value", "note"),
    *("time", "small"),
    *_SMI,
    *(field.name for field in fields(Conditions)),
)
_SHOWN = (
    "step",
    "case",
    "variant",
    "sizes",
    "median_s",
    "expected",
    "verdict",
    "gflop_per_s",
    "gbyte_per_s",
    "speedup",
    *("peak_mib", "psnr_db", "max_abs", "relative_l2", "value", "note"),
)


class Results:
    """A CSV file of rows.

    Args:
        path: The file; made with the first row.
        small: Whether the sizes are small.
        commit: Of what is measured, where there is no checkout to ask.
    """

    def __init__(self, path: Path, *, small: bool, commit: str = "") -> None:
        self.path, self.conditions = path, asdict(Conditions.now())
        self.conditions["commit"] = self.conditions["commit"] or commit or "unknown"
        self._small = "small" if small else ""

    def lines(self) -> list[dict[str, str]]:
        """What is in the file, runs at other places included."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def here(self) -> list[dict[str, str]]:
        """What is in the file of this commit, card and sizes."""
        return [line for line in self.lines() if self._is_here(line)]

    def done(self, step: str, part: str) -> bool:
        """Whether nothing is left to do of a part."""
        states = {line["state"] for line in self.here() if (line["step"], line["part"]) == (step, part)}
        return bool(states) and states <= {"ok", "skipped"}

    def add(self, step: str, part: str, rows: Iterable[Row]) -> list[dict[str, str]]:
        """Write a part's rows in place of older ones; whatever happens, the file is the old or the new one."""
        now = self._now()
        new = [self._line(step, part, row, now) for row in rows]
        old = [line for line in self.lines() if not (self._is_here(line) and _same_part(line, step, part))]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.scratch(os.getpid())
        with scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*old, *new])
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.path)
        return new

    def scratch(self, process: int) -> Path:
        """Where a process writes before the file gets its name; what one that is killed may leave behind."""
        return self.path.with_name(f".{self.path.name}.{process}")

    def _line(self, step: str, part: str, row: Row, now: dict[str, str]) -> dict[str, str]:
        where = {"gpu": self.conditions["gpu"], "small": bool(self._small)}
        expected, verdict = judged(row.case, row.variant, row.figures, **where, allowed=row.allowed)
        wrong = row.allowed is not None and verdict.startswith("MISSED")
        timing = row.timing
        values = {
            "step": step,
            "part": part,
            "state": "failed" if wrong else row.state,
            "case": row.case,
            "variant": row.variant,
            "dtype": row.dtype,
            "sizes": row.sizes,
            "expected": expected,
            "verdict": verdict,
            "note": row.note,
            **({} if timing is None else {"n": timing.n, "p20_s": timing.p20, "p80_s": timing.p80}),
            **row.figures,
            **now,
            **self.conditions,
        }
        return {column: _text(values.get(column)) for column in COLUMNS}

    def _now(self) -> dict[str, str]:
        """When it is, and how the card is: right behind what was measured, it still has the clocks of that."""
        said = ask("nvidia-smi", f"--query-gpu={','.join(_SMI.values())}", "--format=csv,noheader,nounits")
        card = [each.strip() for each in said.splitlines()[0].split(",")] if said else []
        state = dict(zip(_SMI, card, strict=True)) if len(card) == len(_SMI) else {}
        return {**state, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "small": self._small}

    def _is_here(self, line: dict[str, str]) -> bool:
        place = {**self.conditions, "small": self._small}
        return all(line.get(column, "") == _text(place[column]) for column in _PLACE)


def table(lines: Sequence[dict[str, str]]) -> str:
    """Markdown of rows, without the columns that are empty in all of them."""
    columns = [column for column in _SHOWN if any(line[column] for line in lines)]
    rows = [columns, ["---"] * len(columns), *([line[column] for column in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _same_part(line: dict[str, str], step: str, part: str) -> bool:
    return (line["step"], line["part"]) == (step, part)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
