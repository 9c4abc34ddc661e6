"""The tests that need a GPU, in the environment that `benchmarks.stages.unpack` has made."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.measure import ROOT, Row, Timing
from benchmarks.stages.stage import Stage


def run(stage: Stage, source: Path | None, seconds: float | None) -> None:
    """Note what was installed, and test.

    Args:
        stage: Gets the rows.
        source: What the packages came from; None where all was installed already.
        seconds: How long unpacking took; None if an earlier run of the stage has done it.
    """
    if source is not None:
        timing = Timing.of([seconds]) if seconds is not None else None
        row = Row(case="install", variant=source.name, dtype="", sizes="", timing=timing)
        stage.step("install", lambda: [row], keep=seconds is None)
    stage.step("tests", lambda: _tests(stage))


def _tests(stage: Stage) -> list[Row]:
    """Run the tests that are marked; the log is written as they go."""
    mark = "gpu" if not stage.small else "gpu or not gpu"
    # By file: the others import what an environment for a GPU need not have.
    files = sorted((ROOT / "tests").glob("test_*.py"))
    chosen = [str(file) for file in files if "pytest.mark.gpu" in file.read_text(encoding="utf-8")]
    chosen = ["tests/test_noise.py"] if stage.small else chosen
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-m", mark, "-v", "-p", "no:cacheprovider", f"--junitxml={report}"]
        with subprocess.Popen(
            [*command, *chosen],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as tests:
            for line in tests.stdout or ():
                stage.log(line.rstrip())
        if tests.returncode == 5:  # pytest's word for it
            return [Row(case="tests", variant=mark, dtype="", sizes="", note="no test has this mark")]
        rows = results(report, mark)
    if tests.returncode:
        stage.fail(f"pytest ended with {tests.returncode}")
    return rows


def results(report: Path, mark: str) -> list[Row]:
    """Pytest's JUnit report as rows: the sum, then every test that failed."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    counted = ("tests", "failures", "errors", "skipped")
    total = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in counted}
    failed = total["failures"] + total["errors"]
    said = f"{total['tests'] - failed - total['skipped']} passed, {failed} failed, {total['skipped']} skipped"
    seconds = sum(float(suite.get("time", 0)) for suite in suites)
    rows = [Row(case="tests", variant=mark, dtype="", sizes="", timing=Timing.of([seconds]), note=said)]
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for problem in (found for kind in ("failure", "error") if (found := case.find(kind)) is not None):
            name, message = f"{case.get('classname')}.{case.get('name')}", problem.get("message", "").splitlines()
            rows.append(Row(case=name, variant="failed", dtype="", sizes="", note=(message or [""])[0][:200]))
    return rows
