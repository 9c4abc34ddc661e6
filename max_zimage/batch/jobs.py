"""A job from its file to its manifest, whoever draws.

What is done is read from where the job writes to; the rest of the file is planned window after window, as there is
somebody to draw it. So a job that was ended at any moment goes on where it was. In memory are windows that
are not done, and what `max_zimage.batch.source` says of the rest.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from max_zimage.batch.output import JOB, MANIFEST, RESULTS, WORK, Output
from max_zimage.batch.packing import finish, reopen
from max_zimage.batch.planning import Planner
from max_zimage.batch.record_book import RecordBook, missing, results_path, sentences
from max_zimage.batch.records import Record, of_parquet
from max_zimage.batch.source import Source, Survey
from max_zimage.batch.work import Item, JobError, Report, Unit, Window
from max_zimage.progress import Progress, stage

_SECONDS = 3600
_SHOWN = 3  # sentences of an error


class Executor(Protocol):
    """Whoever draws; to be left like a file, by `with`."""

    def __enter__(self) -> Any:
        """Begin; what it returns is not looked at."""

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None, /) -> None:
        """End what was started."""

    def run(self, units: Iterator[Unit], book: RecordBook) -> Iterator[Report]:
        """Draw units, record each in the book or that it cannot be drawn, and report it then.

        Raises:
            JobError: If nothing can be drawn.
        """


@dataclass
class Counts:
    """How far a job is.

    Attributes:
        rows: Rows that are done.
        pictures: That were drawn, now or before.
        failed: That were not.
        drawn: Pictures of this run.
        begun: `time.monotonic` of when it began to draw.
    """

    rows: int = 0
    pictures: int = 0
    failed: int = 0
    drawn: int = 0
    begun: float = field(default_factory=time.monotonic)

    def label(self, rows: int) -> str:
        """Rate, estimate and failures, of so many rows in all."""
        seconds = time.monotonic() - self.begun
        parts = []
        if self.drawn and seconds > 0:
            rate = self.drawn / seconds
            each = max(1.0, (self.pictures + self.failed) / max(1, self.rows))
            parts = [f"{rate:.2f} pictures/s", f"{_duration((rows - self.rows) * each / rate)} left"]
        return ", ".join([*parts, *([f"{self.failed} failed"] if self.failed else [])])


@dataclass
class _Open:
    """A window that is being drawn, and the pictures that it wants."""

    window: Window
    left: dict[tuple[int, int], Item]
    units: dict[str, Unit]

    @classmethod
    def of(cls, window: Window) -> _Open:
        units = {each.name: each for unit in window.units for each in (unit, *unit.alone())}
        items = [item for unit in window.units for item in unit.items]
        return cls(window, {(item.row, item.picture): item for item in items}, units)

    def take(self, name: str) -> list[Item]:
        """The pictures of a unit that is recorded; those that were not counted before."""
        found = [(item.row, item.picture) for item in self.units[name].items]
        return [self.left.pop(key) for key in found if key in self.left]


@dataclass(kw_only=True)
class Job:
    """A job.

    Attributes:
        source: Its file.
        survey: What is known of it.
        planner: Makes windows of its rows.
        book: What is recorded.
        form: How pictures are kept, "files", "parquet" or "webdataset".
        window_rows: Rows of a window.
        max_errors: Pictures that may fail; None for any number.
        retry_failed: Whether pictures that failed in earlier runs are tried again.
        settings: What pictures depend on besides, as JSON has it.
    """

    source: Source
    survey: Survey
    planner: Planner
    book: RecordBook
    form: str
    window_rows: int
    max_errors: int | None = None
    retry_failed: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    _open: dict[int, _Open] = field(default_factory=dict)
    _said: list[str] = field(default_factory=list)  # why the first pictures failed
    _totals: Counter[str] = field(default_factory=Counter)  # of the windows that are done

    def run(self, executor: Executor) -> Counts:
        """Draw what is not drawn.

        Args:
            executor: Whoever draws.

        Raises:
            ValueError: If another job writes to the same place, or it cannot be written to.
            JobError: If more pictures fail than may, or nothing can be drawn.
        """
        with self.output.alone():
            self.claim()
            done = self._done()
            with stage("Drawing", self.survey.rows) as shown:
                self._tell(shown, self._count_done(done))
                with executor:
                    for report in executor.run(self._units(done, shown), self.book):
                        self._reported(report, shown)
            self._close()
        return self.counts

    @property
    def output(self) -> Output:
        """Where it writes to."""
        return self.book.output

    def claim(self) -> None:
        """Write down what the job is, or compare it with what is written.

        Raises:
            ValueError: If it is another one.
        """
        facts = {
            "format_version": 1,
            "file": {"digest": self.survey.digest, "rows": self.survey.rows},
            "format": self.form,
            "batch_pictures": self.planner.batch_pictures,
            "window_rows": self.window_rows,
            **self.settings,
        }
        facts = json.loads(json.dumps(facts, default=str))
        content = self.output.get(JOB)
        if content is None:
            self.output.put(JOB, json.dumps(facts, indent=1).encode())
            return
        try:
            known = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{self.output.url}: {JOB} is damaged; give another --output") from error
        other = [name for name in sorted({*known, *facts}) if known.get(name) != facts.get(name)]
        if other:
            said = "; ".join(f"{name} was {known.get(name)}, is {facts.get(name)}" for name in other)
            raise ValueError(f"{self.output.url} holds another job: {said}. Give another --output, or what it was")

    def _done(self) -> frozenset[int]:
        """Windows with which nothing is to be done."""
        done = self.book.done()
        if not self.retry_failed:
            return done
        self.output.remove(MANIFEST)
        return done - {number for number in sorted(done) if reopen(self.book, number, self.form)}

    def _units(self, done: frozenset[int], shown: Progress) -> Iterator[Unit]:
        """What is to be drawn, in the order of the file."""
        for number, rows in self.source.windows(self.survey, self.window_rows, done):
            window = self.planner.window(number, rows, self.book.kept(number))
            recorded = self.book.names(number)
            self.book.note_bad(window)
            self._open[number] = opened = _Open.of(window)
            self.counts.failed += len(window.bad)
            self.counts.pictures += len(window.kept)
            self._said += sentences(window.bad)
            self._tell(shown, sum(each["picture"] == 0 for each in (*window.bad, *window.kept)))
            for name in sorted(recorded & opened.units.keys()):
                report = self.book.report(opened.units[name])
                if report is not None and number in self._open:
                    self._reported(report, shown, is_new=False)
            if number in self._open:
                self._finish_if_done(number)
            yield from missing(window, recorded)

    def _reported(self, report: Report, shown: Progress, *, is_new: bool = True) -> None:
        opened = self._open.get(report.window)
        items = [] if opened is None else opened.take(report.name)
        if not items:  # of a picture that was recorded twice
            return
        self.counts.pictures += report.pictures
        self.counts.drawn += report.pictures if is_new else 0
        self.counts.failed += report.failed
        if report.failed and len(self._said) < _SHOWN and opened is not None:
            self._said += self.book.sentences(opened.units[report.name])
        self._tell(shown, sum(item.picture == 0 for item in items))
        self._finish_if_done(report.window)

    def _finish_if_done(self, number: int) -> None:
        opened = self._open[number]
        if not opened.left:
            self._add_up(finish(self.book, opened.window, self.form))
            del self._open[number]

    def _count_done(self, done: frozenset[int]) -> int:
        """Count what earlier runs have finished; returns its rows."""
        rows = 0
        for number in sorted(done):
            with self.output.reading(results_path(number)) as file:
                found = of_parquet(file, ["id", "picture", "error"])
            self._add_up(found)
            self._said += sentences(found)[:_SHOWN]
            rows += sum(each["picture"] == 0 for each in found)
        self.counts.pictures, self.counts.failed = self._totals["pictures"], self._totals["failed"]
        return rows

    def _add_up(self, records: Sequence[Record]) -> None:
        bad = sum(each["error"] is not None for each in records)
        self._totals.update(pictures=len(records) - bad, failed=bad)

    def _tell(self, shown: Progress, rows: int) -> None:
        """Show rows as done.

        Raises:
            JobError: If more pictures failed than may.
        """
        for _ in range(rows):
            self.counts.rows += 1
            shown.advance(self.counts.label(self.survey.rows))
        if self.max_errors is not None and self.counts.failed > self.max_errors:
            raise JobError(
                f"{self.counts.failed} pictures failed, --max-errors {self.max_errors} allows no more: "
                f"{'; '.join(self._said[:_SHOWN])}. What is drawn is kept: the same command with a larger number goes "
                f"on. Column error of the tables in {RESULTS} and {WORK} of {self.output.url} has them all"
            )

    def _close(self) -> None:
        """Check that nothing is missing, and write the manifest.

        Raises:
            JobError: If something is missing.
        """
        windows = -(-self.survey.rows // self.window_rows)
        if self._open or self.book.done() != frozenset(range(windows)):
            raise JobError(f"{self.output.url}: not all windows are done; the same command goes on")
        self.counts.pictures, self.counts.failed = self._totals["pictures"], self._totals["failed"]
        facts = {
            "rows": self.survey.rows,
            "pictures": self.counts.pictures,
            "failed": self.counts.failed,
            "format": self.form,
            "results": [results_path(number) for number in range(windows)],
        }
        self.output.put(MANIFEST, json.dumps(facts, indent=1).encode())
        self.output.remove(WORK)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * _SECONDS else f"{seconds / _SECONDS:.1f} h"
