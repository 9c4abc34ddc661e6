"""A job on this machine: processes of its own draw, so that a picture over which one ends does not end the job.

They end with the process that started them, however that ends.
"""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Protocol

from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.tries import again, counted
from max_zimage.batch.work import JobError, Report, Unit
from max_zimage.host.lifeline import end_with_parent

_PATIENCE = 20.0  # seconds to end in, when asked to
_UNSTARTED = 3  # processes that may end one after the other before they have loaded the model


class Loads(Protocol):
    """What a process is given: `max_zimage.batch.drawing.Drawing`, or anything that can be pickled and does as much."""

    def load(self) -> Callable[[Unit], Report]:
        """Load what draws.

        Raises:
            ValueError: If that cannot be done.
        """


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    unit: Unit | None = None
    is_ready: bool = False


class Local:
    """Draws with processes of this machine; to be left like a file, by `with`.

    Args:
        drawing: What each of them loads.
        workers: How many.
        debug: Whether libraries may write what they like to stderr.
    """

    def __init__(self, drawing: Loads, workers: int = 1, *, debug: bool = False) -> None:
        self._drawing, self._count, self._debug = drawing, workers, debug
        self._spawn, self._workers = get_context("spawn"), list[_Worker]()
        self._lifeline, self._held = self._spawn.Pipe(duplex=False)  # closed when this process ends
        self._unstarted = 0

    def __enter__(self) -> Local:
        """Return this."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """End the processes: at once, if something was raised."""
        for worker in self._workers:
            worker.connection.close()
            if kind is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
        self._workers.clear()
        self._held.close()
        self._lifeline.close()

    def run(self, units: Iterator[Unit], book: RecordBook) -> Iterator[Report]:
        """Draw units, and report each when it is recorded.

        Args:
            units: In any order; the next one is asked for when somebody is free.
            book: Where they are recorded.

        Raises:
            JobError: If no process can load the model.
        """
        waiting = deque[Unit]()
        while True:
            while len(waiting) < self._count and (unit := next(units, None)) is not None:
                waiting.append(unit)
            if not waiting and not any(worker.unit for worker in self._workers):
                return
            self._give(waiting)
            for ready in connections.wait([worker.connection for worker in self._workers]):
                worker = next(each for each in self._workers if each.connection is ready)
                more, report = self._heard(worker, book)
                waiting.extendleft(more)
                if report is not None:
                    yield report

    def _give(self, waiting: deque[Unit]) -> None:
        """Hand work to whoever is free, and start processes where there is more of it."""
        while len(self._workers) < min(self._count, len(waiting) + sum(bool(each.unit) for each in self._workers)):
            self._workers.append(self._started())
        for worker in list(self._workers):
            if worker.is_ready and worker.unit is None and waiting:
                worker.unit = waiting.popleft()
                try:
                    worker.connection.send(worker.unit)
                except OSError:  # it has ended, which is heard of next
                    continue

    def _heard(self, worker: _Worker, book: RecordBook) -> tuple[list[Unit], Report | None]:
        """What a process says: that it has loaded, what it has drawn, that it cannot; or that it has ended."""
        try:
            said = worker.connection.recv()
        except (EOFError, OSError):
            return self._ended(worker, book)
        if isinstance(said, Report):
            worker.unit = None
            return [], said
        if said is None:
            worker.is_ready, self._unstarted = True, 0
            return [], None
        if not worker.is_ready:
            raise JobError(str(said))
        return self._ended(worker, book, str(said))

    def _ended(self, worker: _Worker, book: RecordBook, why: str = "") -> tuple[list[Unit], Report | None]:
        worker.connection.close()
        worker.process.join(_PATIENCE)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        self._workers.remove(worker)
        why = why or _exit(worker.process.exitcode)
        if not worker.is_ready:
            self._unstarted += 1
            if self._unstarted == _UNSTARTED:
                raise JobError(f"{_UNSTARTED} processes ended before the model was loaded, the last one with {why}")
        return ([], None) if worker.unit is None else again(counted(worker.unit), why, book)

    def _started(self) -> _Worker:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(
            target=_draw, args=(theirs, self._lifeline, self._drawing, self._debug), name="draw", daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _draw(connection: Connection, lifeline: Connection, drawing: Loads, debug: bool) -> None:
    """What such a process does."""
    end_with_parent(lifeline.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this is told, and ends it
    sys.stdout = sys.stderr
    if not debug:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
    try:
        drawer = drawing.load()
        connection.send(None)
        while True:
            connection.send(drawer(connection.recv()))
    except EOFError:  # there is nothing more to do
        return
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def _exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.Signals(-code).name})"
