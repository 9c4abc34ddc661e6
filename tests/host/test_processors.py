"""Processes that share a machine's processors: each keeps to its own, until it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from max_zimage.host import processors

_EVERY = "import os; os.sched_setaffinity(0, range(os.cpu_count()))"  # tests may be kept to a share of them
KEEP = f"""
{_EVERY}
import subprocess, sys, threading
from max_zimage.host.processors import keep_to
threading.Thread(target=sys.stdin.read, daemon=True).start()
found = keep_to(int(sys.argv[1]))
tasks = [sorted(os.sched_getaffinity(int(each))) for each in os.listdir("/proc/self/task")]
child = subprocess.check_output([sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"], text=True)
print(found, tasks == [found] * len(tasks) and child.strip() == str(found), flush=True)
threading.Event().wait()
"""


class Process:
    """One that keeps to some processors, and lives until it is killed."""

    def __init__(self, count: int, folder: Path) -> None:
        environment = os.environ | {"TMPDIR": str(folder)}
        pipe = subprocess.PIPE
        words = [sys.executable, "-c", KEEP, str(count)]
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment)
        assert self.process.stdout is not None
        numbers, self.agrees = self.process.stdout.readline().rsplit(" ", 1)
        self.processors = [int(each) for each in numbers.strip("[]").split(",")]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def test_each_has_its_own_until_it_is_killed(tmp_path: Path) -> None:
    """With its threads, and what it starts."""
    code = f"{_EVERY}; print(*os.sched_getaffinity(0))"
    there = sorted(map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split()))
    if len(there) < 2:
        pytest.skip("one processor is nobody's to share")
    count = len(there) // 2
    alive = [Process(count, tmp_path) for _ in range(2)]
    try:
        assert [each.agrees for each in alive] == ["True\n"] * 2
        first, second = (each.processors for each in alive)
        assert (len(first), len(second), {*first} & {*second}) == (count, count, set())
        late = Process(count + 1, tmp_path)  # so many are not free: it has all, and holds none
        late.kill()
        assert late.processors == there
        alive.pop(0).kill()
        alive.append(Process(count, tmp_path))
        assert alive[-1].processors == first
    finally:
        for each in alive:
            each.kill()


def test_what_is_started_meanwhile_keeps_to_them() -> None:
    before = os.sched_getaffinity(0)
    (one, *_) = sorted(before)
    child = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
    with processors.starting_on([one]):
        assert subprocess.check_output(child, text=True).split() == [str(one)]
    assert os.sched_getaffinity(0) == before
    with processors.starting_on([]):
        assert os.sched_getaffinity(0) == before


def test_no_limit_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    there = sorted(os.sched_getaffinity(0))
    assert processors.keep_to(0) == processors.keep_to(len(there)) == there
    assert processors.claim(0) == processors.claim(len(there)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(processors, "_allowed", lambda: [0, 1])
    before = os.sched_getaffinity(0)
    assert processors.keep_to(1) == [0, 1]
    assert os.sched_getaffinity(0) == before
    assert "processors are shared with other processes" in caplog.text


@pytest.mark.parametrize(("there", "processes", "each"), [(8, 1, 0), (8, 2, 4), (8, 3, 2), (2, 5, 1), (0, 2, 0)])
def test_a_share_is_even(there: int, processes: int, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_allowed", lambda: list(range(there)))
    assert processors.share_of(processes) == each
