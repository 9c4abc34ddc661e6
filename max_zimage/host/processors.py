"""Processors that a process has for itself, among several of one machine that each compute with all they can see.

Threads of a graph wait for each other, and spin while they do: where two processes share processors, those that wait
take the time of those that work. On two processors, two processes with one each drew 11.8 pictures a second where
they drew 3.5 with both sharing both, and one alone 9.9 (embedded model, 128x128, 8 forwards, float32).
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)
_ALL = "all"  # locked while somebody looks for free ones
_held: list[int] = []  # locks, for as long as the process lives


def share_of(processes: int) -> int:
    """How many processors each of so many processes may have of those that this one may use; 0 for no limit."""
    there = _allowed()
    return max(1, len(there) // processes) if processes > 1 and there else 0


def keep_to(count: int) -> list[int]:
    """Keep this process, and all that it starts from now on, to processors that no other process has claimed.

    Args:
        count: How many; 0 claims none.

    Returns:
        Those that it has: all it had, where `claim` finds none.
    """
    taken = claim(count)
    if not taken:
        return _allowed()
    for thread in os.listdir("/proc/self/task"):  # an affinity is a thread's, and passes to those that it starts
        os.sched_setaffinity(int(thread), taken)
    return taken


def claim(count: int) -> list[int]:
    """Claim processors that no other process has claimed, without keeping to them.

    They are free again when the process ends, however it does.

    Args:
        count: How many; 0 claims none.

    Returns:
        Which; none where as many are not free, where nothing can be written to the folder for temporary files, where
        there are no more than these, and where a system has no such thing.
    """
    allowed = _allowed()
    if not 0 < count < len(allowed):
        return []
    try:
        taken = _taken(allowed, count, _folder())
    except OSError as error:
        _log.warning("processors are shared with other processes, which is slow: %s", error)
        return []
    if len(taken) < count:
        for handle in taken.values():
            os.close(handle)
        return []
    _held.extend(taken.values())
    return list(taken)


@contextmanager
def starting_on(processors: Sequence[int]) -> Iterator[None]:
    """Have what this thread starts keep to processors; the thread itself does, too, until this ends.

    Args:
        processors: Which; none changes nothing.
    """
    if not processors:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _taken(allowed: list[int], count: int, folder: Path) -> dict[int, int]:
    """Processor -> its lock, of as many as are free and wanted."""
    with _locked(folder / _ALL):
        taken = dict[int, int]()
        for processor in allowed:
            if len(taken) < count and (handle := _claimed(folder / str(processor))) is not None:
                taken[processor] = handle
    return taken


def _allowed() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"max-zimage-processors-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    handle = _opened(file)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _claimed(file: Path) -> int | None:
    handle = _opened(file)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _opened(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
