"""Tests that do not begin in time are left out, and a run that has left one out is no success."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.paths import ROOT
from tests.time_limit import VARIABLE


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize(("seconds", "said", "status"), [(-1, "skipped", 1), (3600, "passed", 0)])
def test_what_does_not_begin_in_time_is_left_out(seconds: int, said: str, status: int, processes: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", processes, "tests/host/test_sizes.py"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {VARIABLE: str(time.time() + seconds)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout[-2000:]
    assert f" {said} in " in done.stdout
    assert (f"not run: the time that {VARIABLE} gives was over" in done.stdout) == (said == "skipped")
