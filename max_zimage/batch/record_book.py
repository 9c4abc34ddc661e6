"""What of a job is done: the records that lie where it writes to, and nothing else."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from max_zimage.batch.output import RESULTS, WORK, Output
from max_zimage.batch.records import Record, of_parquet, record, to_parquet
from max_zimage.batch.work import Item, Report, Unit, Window

_RECORDS, _BEGUN = ".parquet", ".begun"


class RecordBook:
    """The records of a job.

    Args:
        output: Where it writes to.
        run: Which run of the job this is: what other runs began counts for nothing.
    """

    def __init__(self, output: Output, run: str) -> None:
        self.output, self.run = output, run

    def done(self) -> frozenset[int]:
        """Windows that are done."""
        names = self.output.names(RESULTS)
        return frozenset(int(name[: -len(_RECORDS)]) for name in names if name.endswith(_RECORDS))

    def names(self, window: int) -> frozenset[str]:
        """Units of a window that are recorded, by name."""
        names = self.output.names(work_folder(window))
        return frozenset(name[: -len(_RECORDS)] for name in names if name.endswith(_RECORDS))

    def report(self, unit: Unit) -> Report | None:
        """What is recorded of a unit; None for nothing."""
        content = self.output.get(self._path(unit))
        return None if content is None else _report(unit, of_parquet(content, ["error"]))

    def write(self, unit: Unit, records: Iterable[Record]) -> Report:
        """Record a unit."""
        found = list(records)
        self.output.put(self._path(unit), to_parquet(found))
        return _report(unit, found)

    def fail(self, unit: Unit, why: str) -> Report:
        """Record that a unit cannot be drawn."""
        return self.write(unit, [failed(item, why) for item in unit.items])

    def begin(self, unit: Unit) -> None:
        """Say that a process begins with a unit: should it end over it, the next one knows."""
        self.output.put(f"{work_folder(unit.window)}/{unit.name}.{self.run}.{secrets.token_hex(4)}{_BEGUN}", b"")

    def begun(self, window: int) -> Counter[str]:
        """How often units of a window were begun in this run, by name."""
        parts = [name.split(".") for name in self.output.names(work_folder(window)) if name.endswith(_BEGUN)]
        return Counter(name for name, run, *_ in parts if run == self.run)

    def records_of(self, window: Window) -> list[dict[str, Any]]:
        """All records of a window of which nothing is missing."""
        found = [dict(each) for each in window.bad]
        names = self.names(window.number)
        for name in sorted(names):
            if name.partition("-")[0] in names and "-" in name:  # taken apart, and drawn as a batch after all
                continue
            content = self.output.get(f"{work_folder(window.number)}/{name}{_RECORDS}")
            found += [] if content is None else of_parquet(content)
        return found

    def _path(self, unit: Unit) -> str:
        return f"{work_folder(unit.window)}/{unit.name}{_RECORDS}"


def missing(window: Window, recorded: Collection[str]) -> list[Unit]:
    """What of a window is still to be drawn: batches, or single pictures of those that were taken apart.

    Args:
        window: The window.
        recorded: From `RecordBook.names`.
    """
    found: list[Unit] = []
    for unit in window.units:
        alone = unit.alone()
        left = [] if unit.name in recorded else [each for each in alone if each.name not in recorded]
        found += left if len(left) < len(alone) else [unit]
    return found


def work_folder(window: int) -> str:
    """Where what belongs to a window lies until it is done."""
    return f"{WORK}/{window:05d}"


def results_path(window: int) -> str:
    """Where the records of a window are that is done."""
    return f"{RESULTS}/{window:05d}{_RECORDS}"


def failed(item: Item, why: str) -> dict[str, Any]:
    """The record of a picture that there is not."""
    return record(item.id, item.row, item.picture, error=why, note=item.note or None)


def _report(unit: Unit, records: list[Any]) -> Report:
    bad = sum(each["error"] is not None for each in records)
    return Report(window=unit.window, name=unit.name, pictures=len(records) - bad, failed=bad)
