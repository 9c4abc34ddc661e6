"""A run that will be stopped ends in time, and red: what it has found is told, and that it has not tried everything.

A run that is stopped tells nothing. Here tests that have not begun by a given time are left out, and the run fails for
it, whatever the others say. `tests.scheduling` has most tests run before those that take long, so that it tells most.
"""

from __future__ import annotations

import os
import time

import pytest

VARIABLE = "MAX_ZIMAGE_TESTS_UNTIL"
"""Seconds since 1970 after which no further test begins."""
_SAID = f"not run: the time that {VARIABLE} gives was over"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    until = float(os.environ.get(VARIABLE, "inf"))
    if time.time() > until:
        pytest.skip(_SAID)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail for tests that were left out."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if session.exitstatus == pytest.ExitCode.OK and any(_SAID in str(report.longrepr) for report in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
