"""The tests that need a GPU, each that fails a row."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.measure import ROOT, Timing

_NOTHING_MARKED = 5
"""Pytest's status."""


def parts(bench: Bench) -> list[Part]:
    """File by file: one whose graphs take too long to compile costs no other."""
    marked = [
        file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in file.read_text("utf-8")
    ]
    chosen = [ROOT / "tests" / "sampling" / "test_noise.py"] if bench.small else marked
    return [Part(name=file.stem, seconds=60, measure=partial(_run, bench, file)) for file in chosen]


def _run(bench: Bench, file: Path) -> Iterator[Row]:
    mark = "gpu or not gpu" if bench.small else "gpu"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-m", mark, "-v", "-p", "no:cacheprovider", f"--junitxml={report}"]
        status = subprocess.run([*command, str(file)], cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}).returncode
        if status == _NOTHING_MARKED:
            yield Row(case=file.stem, variant=mark, state="skipped", note="no test has this mark")
            return
        yield from results(report, file.stem)
    if status not in (0, 1):
        raise RuntimeError(f"pytest ended with {status}")


def results(report: Path, name: str) -> Iterator[Row]:
    """Pytest's JUnit report as rows: the sum, then every test that failed."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total = {
        each: sum(int(suite.get(each, 0)) for suite in suites) for each in ("tests", "failures", "errors", "skipped")
    }
    failed = total["failures"] + total["errors"]
    said = f"{total['tests'] - failed - total['skipped']} passed, {failed} failed, {total['skipped']} skipped"
    seconds = Timing.of([sum(float(suite.get("time", 0)) for suite in suites)])
    yield Row(case=name, variant="tests", timing=seconds, note=said, state="failed" if failed else "ok")
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for problem in (found for kind in ("failure", "error") if (found := case.find(kind)) is not None):
            message = (problem.get("message", "").splitlines() or [""])[0]
            yield Row(
                case=f"{case.get('classname')}.{case.get('name')}", variant="failed", state="failed", note=message[:200]
            )
