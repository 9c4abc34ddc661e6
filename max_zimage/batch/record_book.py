"""What of a job is done: the records that lie where it writes to, and nothing else."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from max_zimage.batch.output import RESULTS, WORK, Output
from max_zimage.batch.records import Record, of_parquet, record, schema, to_parquet
from max_zimage.batch.work import Item, Report, Unit, Window

_RECORDS, _BEGUN = ".parquet", ".begun"
_KEPT, _BAD = f"kept{_RECORDS}", f"bad{_RECORDS}"  # beside records of units, whose names are hexadecimal digits
_FORGIVEN = 6  # machines that may be lost over one unit before that counts


class RecordBook:
    """The records of a job.

    Args:
        output: Where it writes to.
        run: Which run of the job this is: what other runs began counts for nothing.
        place: Which machine this is; "" where all are one.
    """

    def __init__(self, output: Output, run: str, place: str = "") -> None:
        self.output, self.run, self.place = output, run, place

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

    def sentences(self, unit: Unit) -> list[str]:
        """Why which of a recorded unit's pictures are not there."""
        content = self.output.get(self._path(unit))
        return sentences([] if content is None else of_parquet(content, ["id", "error"]))

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
        mark = f"{unit.name}.{self.run}.{self.place}.{secrets.token_hex(4)}{_BEGUN}"
        self.output.put(f"{work_folder(unit.window)}/{mark}", b"")

    def begun(self, window: int) -> Counter[str]:
        """How often units of a window were begun in this run, by name."""
        return Counter(name for name, _ in self._marks(window))

    def ended(self, window: int, places: Collection[str]) -> Counter[str]:
        """How often processes have ended over units of a window that are not recorded, by name.

        A machine that is lost has reasons of its own, so its processes do not count; but a picture may be the reason,
        and more than a few machines are lost over no picture.

        Args:
            window: Which.
            places: Machines that are there.
        """
        there, lost = Counter[str](), Counter[str]()
        for name, place in self._marks(window):
            (there if place in places else lost)[name] += 1
        return there + Counter({name: max(0, times - _FORGIVEN) for name, times in lost.items()})

    def _marks(self, window: int) -> list[tuple[str, str]]:
        """Name of a unit and machine, of each beginning in this run."""
        parts = [name.split(".") for name in self.output.names(work_folder(window)) if name.endswith(_BEGUN)]
        return [(name, place) for name, run, place, *_ in parts if run == self.run]

    def note_bad(self, window: Window) -> None:
        """Write down for people what rows of a window cannot be drawn, before it is done; nobody else reads it."""
        if window.bad:
            self.output.put(f"{work_folder(window.number)}/{_BAD}", to_parquet(window.bad))

    def keep(self, window: int, records: Sequence[Record]) -> None:
        """Write down what a window came to of which something is tried again."""
        self.output.put(f"{work_folder(window)}/{_KEPT}", to_parquet(records))

    def kept(self, window: int) -> list[dict[str, Any]]:
        """What `keep` was given; nothing for most windows."""
        content = self.output.get(f"{work_folder(window)}/{_KEPT}")
        return [] if content is None else of_parquet(content)

    def finished(self, window: int) -> list[dict[str, Any]]:
        """All records of a window that is done."""
        with self.output.reading(results_path(window)) as file:
            return of_parquet(file, schema().names)

    def records_of(self, window: Window) -> list[dict[str, Any]]:
        """All records of a window of which nothing is missing."""
        found = [dict(each) for each in (*window.bad, *window.kept)]
        for unit in window.units:
            whole = self.output.get(self._path(unit))
            # Taken apart, unless it was drawn as a batch after all.
            parts = [self.output.get(self._path(each)) for each in unit.alone()] if whole is None else [whole]
            found += [each for part in parts if part is not None for each in of_parquet(part)]
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


def sentences(records: Iterable[Record]) -> list[str]:
    """Why which pictures are not there."""
    return [f"{each['id']}: {each['error']}" for each in records if each["error"] is not None]


def _report(unit: Unit, records: list[Any]) -> Report:
    bad = sum(each["error"] is not None for each in records)
    return Report(window=unit.window, name=unit.name, pictures=len(records) - bad, failed=bad)
