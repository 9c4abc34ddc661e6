"""What every stage does with its rows: keep, continue, write, and stop in time.

A step is what is measured or done at once. Its rows are in the CSV file as soon as it is done, and in the work folder,
from where a repeated stage takes them instead of measuring again. A step that fails becomes a row that says why, and is
tried again the next time.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from benchmarks.measure import Conditions, Row, Timing, ask, first_line, table, write_csv
from benchmarks.pictures import UNKNOWN, Quality

OUT_OF_TIME = 3
"""Exit status of a stage that stopped itself."""


class Stage:
    """One stage of measurements.

    Args:
        name: Names its files.
        work: What is kept between stages.
        out: Where the CSV file and the log go.
        minutes: After which the stage stops, in the middle of a step if need be.
        small: Whether sizes are small and everything runs on the CPU.
    """

    def __init__(self, name: str, *, work: Path, out: Path, minutes: float, small: bool) -> None:
        self.name, self.work, self.small = name, work, small
        self._csv, self._log = out / f"{name}.csv", out / f"{name}.log"
        self._kept = work / f"{name}{'-small' if small else ''}.jsonl"
        for folder in (work, out):
            folder.mkdir(parents=True, exist_ok=True)
        self.conditions = Conditions.now()
        self.rows: list[Row] = []
        self._finished, self._failed, self._step = self._read(), False, "starting"
        self._lock = threading.Lock()
        self._deadline = time.monotonic() + 60 * minutes
        self._timer = threading.Timer(60 * minutes, self._stop)
        self._timer.daemon = True
        self._timer.start()
        self.log(f"{name}: {minutes:g} minutes, {', '.join(f'{k} {v}' for k, v in vars(self.conditions).items())}")
        self._log_gpu()

    @property
    def seconds_left(self) -> float:
        """Until the stage stops itself."""
        return self._deadline - time.monotonic()

    def log(self, text: str) -> None:
        """Say something, on stdout and in the log."""
        line = f"[{time.strftime('%H:%M:%S')}] {text}"
        print(line, flush=True)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def step(self, key: str, measure: Callable[[], Sequence[Row]], *, keep: bool = True) -> bool:
        """Do a step, or take its rows from an earlier run of the same commit on the same device.

        Args:
            key: Names the step within the stage.
            measure: Returns its rows; what it raises becomes a row.
            keep: Whether a repeated stage may do without it. False where later steps need what it leaves in memory.

        Returns:
            Whether the rows are there.
        """
        if keep and key in self._finished:
            self.log(f"{key}: taken from an earlier run")
            self._add(self._finished[key])
            return True
        self.log(f"{key}: begins, {self.seconds_left:.0f} s left")
        self._step, begin = key, time.monotonic()
        try:
            rows = list(measure())
        except Exception as error:  # whatever goes wrong in one step must not cost the others
            self._failed = True
            self.log(f"{key}: failed\n{traceback.format_exc()}")
            self._add([Row(case=key, variant="failed", dtype="", sizes="", note=first_line(error))])
            return False
        self.log(f"{key}: done in {time.monotonic() - begin:.1f} s")
        self._keep(key, rows)
        self._add(rows)
        return True

    def fail(self, text: str) -> None:
        """Count the stage as failed, for a reason that its rows name."""
        self._failed = True
        self.log(text)

    def finish(self) -> int:
        """Print the table; the exit status, 1 if a step failed."""
        self._timer.cancel()
        self._log_gpu()
        print(table(self.rows, self.conditions), flush=True)
        return 1 if self._failed else 0

    def _stop(self) -> None:
        """Leave in the middle of a step: nothing of MAX or torch can be interrupted."""
        self.log(f"{self._step}: out of time; call the stage again to go on")
        self._add([Row(case=self._step, variant="out of time", dtype="", sizes="", note="call the stage again")])
        self.finish()
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(OUT_OF_TIME)

    def _add(self, rows: Sequence[Row]) -> None:
        with self._lock:
            self.rows += rows
            write_csv(self._csv, self.rows, self.conditions)

    def _keep(self, key: str, rows: Sequence[Row]) -> None:
        line = {"key": key, "for": self._place, "rows": [asdict(row) for row in rows]}
        with self._kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self) -> dict[str, list[Row]]:
        if not self._kept.exists():
            return {}
        lines = []
        for text in self._kept.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:  # the end of a stage that was killed while it wrote
                continue
        return {line["key"]: [_row(row) for row in line["rows"]] for line in lines if line["for"] == self._place}

    @property
    def _place(self) -> list[str]:
        """What rows of two runs must share to stand in one table."""
        return [self.conditions.commit, self.conditions.gpu or self.conditions.cpu]

    def _log_gpu(self) -> None:
        """Clocks, power limit, temperature and throttling, which decide whether two runs can be compared."""
        query = "clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu,clocks_throttle_reasons.active,memory.used"
        if said := ask("nvidia-smi", f"--query-gpu={query}", "--format=csv"):
            self.log(said)


def _row(values: dict[str, object]) -> Row:
    timing, quality = values.pop("timing"), values.pop("quality")
    return Row(
        timing=Timing(**timing) if isinstance(timing, dict) else None,
        quality=Quality(**quality) if isinstance(quality, dict) else UNKNOWN,
        **values,  # type: ignore[arg-type]
    )
