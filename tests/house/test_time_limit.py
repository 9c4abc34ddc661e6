"""Tests that do not begin in time are left out, and the run says so."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.paths import ROOT
from tests.time_limit import VARIABLE


@pytest.mark.parametrize(("seconds", "said"), [(-1, "skipped"), (3600, "passed")])
def test_what_does_not_begin_in_time_is_left_out(seconds: int, said: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/host/test_sizes.py"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {VARIABLE: str(time.time() + seconds)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert f" {said} in " in done.stdout
    assert (f"not run: the time that {VARIABLE} gives was over" in done.stdout) == (said == "skipped")
