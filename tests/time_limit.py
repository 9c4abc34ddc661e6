"""Where the machine is so slow that a run would be stopped, what has not begun in time is left out, and said to be.

A run that is stopped says nothing of what it has found. On a machine of the usual speed all tests are through long
before. `tests.scheduling` has most tests run before those that take long, so that these few are what is left out.
"""

from __future__ import annotations

import os
import time

import pytest

VARIABLE = "MAX_ZIMAGE_TESTS_UNTIL"
"""Seconds since 1970 after which no further test begins."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    until = float(os.environ.get(VARIABLE, "inf"))
    if time.time() > until:
        pytest.skip(f"not run: the time that {VARIABLE} gives was over")
