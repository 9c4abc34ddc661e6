"""Stages of measurements: they continue, survive failures, stop in time, and run from end to end at a small size."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.measure import ROOT, Row, Timing
from benchmarks.stages import __main__ as command
from benchmarks.stages import install, unpack
from benchmarks.stages.setting import Case, step_gflop
from benchmarks.stages.stage import OUT_OF_TIME, Stage
from max_zimage.targets import FULL_MODEL


def row(case: str, seconds: float = 1.0) -> Row:
    return Row(case=case, variant="ours", dtype="float32", sizes="", timing=Timing.of([seconds]), gflop=2.0)


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage("part", work=tmp_path / "work", out=tmp_path / "out", minutes=5, small=True)
    yield made
    made._timer.cancel()


def test_a_failed_step_becomes_a_row_and_the_next_one_runs(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[Row]:
        raise RuntimeError("no kernel\nand more")

    assert not stage.step("first", broken)
    assert stage.step("second", lambda: [row("second", 0.5)])
    assert stage.finish() == 1
    first, second = lines(tmp_path / "out" / "part.csv")
    assert (first["case"], first["variant"], first["note"]) == ("first", "failed", "RuntimeError: no kernel")
    assert (second["case"], second["median_s"], second["gflop_per_s"]) == ("second", "0.5", "4")
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("| second | ours |")
    assert "RuntimeError: no kernel\nand more" in (tmp_path / "out" / "part.log").read_text()


def test_a_repeated_stage_goes_on_where_it_stopped(stage: Stage, tmp_path: Path) -> None:
    def broken() -> list[Row]:
        raise RuntimeError("not yet")

    stage.step("done", lambda: [row("done", 3.0)])
    stage.step("failed", broken)
    stage.step("in memory", lambda: [row("in memory", 4.0)], keep=False)
    with (tmp_path / "work" / "part-small.jsonl").open("a") as file:
        file.write('{"key": "cut o')  # by a kill

    called: list[str] = []

    def again(name: str) -> list[Row]:
        called.append(name)
        return [row(name, 9.0)]

    other = Stage("part", work=tmp_path / "work", out=tmp_path / "out", minutes=5, small=True)
    for name in ("done", "failed"):
        other.step(name, lambda name=name: again(name))
    other.step("in memory", lambda: again("in memory"), keep=False)
    assert other.finish() == 0
    assert called == ["failed", "in memory"]
    assert [line["median_s"] for line in lines(tmp_path / "out" / "part.csv")] == ["3", "9", "9"]


def test_rows_of_another_commit_are_measured_again(stage: Stage, tmp_path: Path) -> None:
    stage.step("a", lambda: [row("a", 3.0)])
    file = tmp_path / "work" / "part-small.jsonl"
    file.write_text(file.read_text().replace(f'["{stage.conditions.commit}", ', '["other", '))
    again = Stage("part", work=tmp_path / "work", out=tmp_path / "out", minutes=5, small=True)
    again.step("a", lambda: [row("a", 7.0)])
    again.finish()
    assert [line["median_s"] for line in lines(tmp_path / "out" / "part.csv")] == ["7"]


def test_a_stage_stops_itself_and_keeps_what_it_has(tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys
        from pathlib import Path
        from benchmarks.measure import Row
        from benchmarks.stages.stage import Stage
        folder = Path({str(tmp_path)!r})
        stage = Stage("slow", work=folder, out=folder, minutes=0.05, small=True)
        stage.step("quick", lambda: [Row(case="quick", variant="ours", dtype="", sizes="")])
        stage.step("endless", lambda: subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=dict(os.environ),  # MAX puts variables behind Python's back that lead another Python out of its environment
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == OUT_OF_TIME, done.stderr
    quick, endless = lines(tmp_path / "slow.csv")
    assert quick["case"] == "quick"
    assert (endless["case"], endless["variant"]) == ("endless", "out of time")
    assert "| endless | out of time |" in done.stdout


def test_work_of_a_step() -> None:
    turbo = Case(model="Turbo", side=1024, steps=8, guidance=0.0, shift=3.0, repeats=1)
    guided = Case(model="base", side=1024, steps=8, guidance=4.0, shift=6.0, repeats=1)
    # 4,096 image tokens and 32 of the caption; without the context refiner, which is not part of a step.
    assert step_gflop(FULL_MODEL.transformer, turbo, 20) == pytest.approx(55_000, rel=0.01)
    assert step_gflop(FULL_MODEL.transformer, guided, 20) == 2 * step_gflop(FULL_MODEL.transformer, turbo, 20)


def wheel(path: Path) -> Path:
    info = "star-1.0.dist-info"
    with zipfile.ZipFile(path / "star-1.0-py3-none-any.whl", "w") as file:
        file.writestr("star.py", "POINTS = 5\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: star\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", f"star.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


def archive(path: Path) -> Path:
    with tarfile.open(path / "site.tar.xz", "w:xz") as tar:
        entry = tarfile.TarInfo("./star.py")
        entry.size = 11
        tar.addfile(entry, io.BytesIO(b"POINTS = 5\n"))
    return path / "site.tar.xz"


def parts(path: Path) -> Path:
    whole = archive(path).read_bytes()
    (path / "parts").mkdir()
    for number, start in enumerate(range(0, len(whole), 64)):
        (path / "parts" / f"part.{number:02d}").write_bytes(whole[start : start + 64])
    return path / "parts"


@pytest.mark.parametrize("make", [wheel, archive, parts])
def test_packages_come_from_files(tmp_path: Path, make) -> None:
    (tmp_path / "source").mkdir()
    site = tmp_path / "work" / "site"
    site.mkdir(parents=True)
    (site / "old.py").write_text("")
    unpack.install(make(tmp_path / "source"), site)
    said = subprocess.run([sys.executable, "-c", "import star; print(star.POINTS)"], cwd=site, stdout=subprocess.PIPE)
    assert said.stdout == b"5\n"
    assert not (site / "old.py").exists()


def test_what_holds_no_packages_is_refused_and_leaves_the_old_ones(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds neither wheels"):
        unpack.install(tmp_path / "empty", site)
    with pytest.raises(ValueError, match="is no tar archive"):
        unpack.install(tmp_path / "notes.txt", site)
    assert site.is_dir()


def test_the_command_starts_without_any_package(tmp_path: Path) -> None:
    """It is what installs them."""
    command = [sys.executable, "-S", "-m", "benchmarks.stages", "install", "--from", str(tmp_path)]
    where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    said = subprocess.run([*command, *where], cwd=measure.ROOT, capture_output=True, text=True)
    assert said.returncode == 1
    assert said.stderr == f"install: {tmp_path} holds neither wheels (*.whl) nor the parts of an archive " + (
        "(part.00, part.01, ...)\n"
    )


def test_results_of_tests_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1" time="12.5">'
        '<testcase classname="tests.test_a" name="b"><failure message="assert 1 == 2&#10;more"/></testcase>'
        '<testcase classname="tests.test_a" name="c"><error message="boom"/></testcase></testsuite></testsuites>'
    )
    whole, failure, error = install.results(report, "gpu")
    assert whole.note == "2 passed, 2 failed, 1 skipped"
    assert whole.timing is not None and whole.timing.median == 12.5
    assert (failure.case, failure.note) == ("tests.test_a.b", "assert 1 == 2")
    assert (error.case, error.note) == ("tests.test_a.c", "boom")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("NVIDIA H200, 580.1", ("NVIDIA H200", "580.1")),
        ("NVIDIA H200, 580.1\\nNVIDIA A100, PCIe, 580.1", ("NVIDIA H200 + NVIDIA A100, PCIe", "580.1")),
        ("", ("", "")),
    ],
)
def test_the_gpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, found: tuple[str, str]) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert measure._gpu_and_driver() == found


def test_without_nvidia_smi_or_where_it_fails_no_gpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure._gpu_and_driver() == ("", "")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho no, devices\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert measure._gpu_and_driver() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "invalid choice: 'nosuch'"),
        (["model", "--minutes", "0"], "--minutes must be more than 0, got 0"),
        (["install", "--from", "nosuch.tar"], "there is nothing at nosuch.tar"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([*arguments, "--work", "x", "--out", "y"])
    assert said in capsys.readouterr().err


def test_small_stages_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "OTEL_SDK_DISABLED"):  # which a stage sets for what it starts
        monkeypatch.setenv(name, "1" if name != "PYTHONPATH" else "")
    where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path), "--small"]
    assert command.main(["model", *where]) == 0
    model = {(line["case"], line["variant"]): line for line in lines(tmp_path / "model.csv")}
    assert model["pipeline", "ready"]["note"] == "1 of 1 modules found on disk"  # the embedded model's graphs
    assert {variant for case, variant in model if case == "graph ready"} >= {"denoise", "text_encoder", "decode"}

    assert command.main(["embedded", *where]) == 0
    embedded = lines(tmp_path / "embedded.csv")
    assert [line["variant"] for line in embedded] == ["diffusers", "ours"] * 2
    assert min(float(line["psnr_db"]) for line in embedded) > 50

    assert command.main(["pictures", *where]) == 0
    pictures = {line["case"]: line for line in lines(tmp_path / "pictures.csv")}
    assert float(pictures["base 128x128: prompt to picture"]["gflop"]) == pytest.approx(
        4 * float(pictures["base 128x128: denoise"]["gflop"]), rel=1e-3
    )
    assert int(pictures["base 128x128: denoise"]["n"]) == 4
    assert float(pictures["roof"]["roof_gflop_per_s"]) > 0
