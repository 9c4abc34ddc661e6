"""An environment from files, without a package index, and the tests that need a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.measure import ROOT, Conditions, Row, Timing, seconds_of
from benchmarks.stages.stage import Stage


def run(stage: Stage, source: Path | None, site: Path) -> None:
    """Install and test.

    Args:
        stage: Gets the rows.
        source: See `install`; None where all is installed already.
        site: Folder for the packages.
    """
    if source is not None and not stage.step("install", lambda: _install(stage, source, site), keep=site.is_dir()):
        return
    if site.is_dir():
        sys.path.insert(0, str(site))
        stage.conditions = Conditions.now()  # the versions of what is there now
    stage.step("tests", lambda: _tests(stage))


def _install(stage: Stage, source: Path, site: Path) -> list[Row]:
    seconds = seconds_of(lambda: install(source, site))
    stage.log(f"{source} -> {site}: {len(list(site.iterdir()))} entries")
    return [Row(case="install", variant=source.name, dtype="", sizes="", timing=Timing.of([seconds]))]


def install(source: Path, site: Path) -> None:
    """Fill a folder with packages.

    Args:
        source: A folder of wheels, a tar archive of a site-packages folder (compressed or not), or a folder with the
            parts of such an archive, part.00, part.01 and so on.
        site: Where to; appears when it is complete.

    Raises:
        ValueError: If the source is none of these.
        RuntimeError: If pip fails.
    """
    scratch = site.with_name(site.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    wheels, parts = (sorted(source.glob(pattern)) for pattern in ("*.whl", "*.[0-9][0-9]"))
    if source.is_file():
        _unpack(source, scratch)
    elif wheels:
        _pip(wheels, scratch)
    elif parts:
        _unpack_parts(parts, scratch)
    else:
        raise ValueError(f"{source} holds neither wheels (*.whl) nor the parts of an archive (part.00, part.01, ...)")
    shutil.rmtree(site, ignore_errors=True)
    scratch.rename(site)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="tar")
    except tarfile.ReadError as error:
        raise ValueError(f"{archive} is no tar archive: {error}") from error


def _unpack_parts(parts: Sequence[Path], folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder.parent) as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole)
        whole.flush()
        _unpack(Path(whole.name), folder)


def _pip(wheels: Sequence[Path], folder: Path) -> None:
    flags = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *flags, *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise RuntimeError(f"pip failed: {done.stderr.strip()[-500:]}")


def _tests(stage: Stage) -> list[Row]:
    """Run the tests that are marked; the log is written as they go."""
    mark = "gpu" if not stage.small else "gpu or not gpu"
    chosen = ["tests/test_noise.py"] if stage.small else []
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
