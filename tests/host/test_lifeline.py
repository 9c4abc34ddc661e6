"""Children that end with their parent, however that ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from max_zimage.host.lifeline import PARENT_VARIABLE
from max_zimage.serving.server import Ending
from tests.paths import ROOT

CHILD = """
import sys, time
from max_zimage.host import lifeline
if sys.argv[1] == "pipe":  # as on macOS
    lifeline._ask_kernel = lambda: None
if sys.argv[1] == "kernel":  # as where a thread holds Python's lock
    lifeline._watch = lambda pipe: None
if sys.argv[1] == "named":
    lifeline.end_with_named_parent()
else:
    lifeline.end_with_parent(0)
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys, time
environment = {**os.environ, sys.argv[3]: str(os.getpid())}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdin=subprocess.PIPE, env=environment)
print(child.pid, flush=True)
time.sleep(600)
"""


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("way", ["pipe", "kernel", "named"])
def test_a_child_ends_with_a_killed_parent(way: str) -> None:
    command = [sys.executable, "-c", PARENT, CHILD, way, PARENT_VARIABLE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ready\n"
        assert psutil.pid_exists(child)
        parent.kill()
        parent.wait()
        wait_for_end(child)


def test_a_parent_that_was_gone_before() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    done = subprocess.run([sys.executable, "-c", CHILD, "pipe"], stdin=reading, timeout=120, cwd=ROOT)
    os.close(reading)
    assert done.returncode == 1


def test_another_process_than_the_one_named_is_left_alone() -> None:
    environment = {**os.environ, PARENT_VARIABLE: "1"}
    command = [sys.executable, "-m", "max_zimage", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0


def test_compiling_ends_with_a_killed_command(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "max_zimage",
        "compile",
        "--target",
        "cuda:sm_90a",
        "--graphs",
        "text_encoder",
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as parent:
        deadline = time.monotonic() + 120
        while not (children := psutil.Process(parent.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for child in children:
            wait_for_end(child.pid)


def test_signals_that_end_a_server() -> None:
    """One ends it, a second one later says at once; what nohup had ignored stays so."""

    async def told() -> list[bool]:
        end = Ending()
        seen = []
        for number, pause in ((signal.SIGHUP, 0.0), (signal.SIGTERM, 0.0), (signal.SIGINT, 0.6), (signal.SIGINT, 0.0)):
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.05)
            seen += [end.wished.is_set(), end.at_once.is_set()]
            await asyncio.sleep(pause)
        return seen

    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert asyncio.run(told()) == [False, False, True, False, True, False, True, True]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert asyncio.run(told()) == [True, False, True, False, True, False, True, True]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
