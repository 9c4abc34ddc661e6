"""The slowest tests and files of a run, and how much of each was MAX compiling: what warm caches would save."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Generator
from functools import wraps
from typing import Any

import numpy as np
import pytest

_SHOWN, _FILES = 10, 25
_seconds = 0.0
_inside = False


def watch() -> None:
    """Count the seconds that MAX compiles from here on, once it is imported; nothing is imported for it."""
    api = sys.modules.get("max.engine.api")
    if api is None or hasattr(api.InferenceSession.compile, "__wrapped__"):
        return
    plain = api.InferenceSession.compile

    @wraps(plain)
    def compile(*args: Any, **kwargs: Any) -> Any:
        global _seconds, _inside
        if _inside:
            return plain(*args, **kwargs)
        begin, _inside = time.perf_counter(), True
        try:
            return plain(*args, **kwargs)
        finally:
            _seconds += time.perf_counter() - begin
            _inside = False

    api.InferenceSession.compile = compile


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note with each report how much of its phase was compiling."""
    global _seconds
    report: Any = yield
    # numpy's numbers do not go from one process to another.
    report.user_properties = [
        (name, value.item() if isinstance(value, np.generic) else value) for name, value in report.user_properties
    ]
    report.compiling, _seconds = _seconds, 0.0
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    watch()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the slowest tests, the slowest files and the sums."""
    reports = [
        report
        for outcome in ("passed", "failed", "error", "")
        for report in terminalreporter.stats.get(outcome, [])
        if hasattr(report, "compiling")
    ]
    if not reports:
        return
    total = sum(report.compiling for report in reports)
    terminalreporter.section(f"slowest {_SHOWN}; compiling in this process took {total:.0f} s in all")
    for report in sorted(reports, key=lambda report: report.duration, reverse=True)[:_SHOWN]:
        share = report.compiling / report.duration if report.duration else 0.0
        terminalreporter.line(f"{report.duration:7.1f} s, {share:4.0%} compiling: {report.when:5} {report.nodeid}")
    whole, compiled = Counter[str](), Counter[str]()
    for report in reports:
        file = report.nodeid.partition("::")[0]
        whole[file] += report.duration
        compiled[file] += report.compiling
    terminalreporter.line(f"{whole.total():7.0f} s in all; the slowest files:")
    for file, seconds in whole.most_common(_FILES):
        terminalreporter.line(f"{seconds:7.1f} s, {compiled[file] / max(seconds, 1e-9):4.0%} compiling: {file}")
