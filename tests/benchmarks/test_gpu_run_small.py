"""Every step of the run on a GPU, at small sizes on a CPU, and what the profiler and pytest say, as rows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.gpu_run import __main__ as command
from benchmarks.gpu_run.drawing import Case, step_gflop
from benchmarks.gpu_run.stages import counters
from benchmarks.gpu_run.stages import tests as gpu_tests
from benchmarks.gpu_run.stages.peers import COMPILED, EAGER
from benchmarks.gpu_run.steps import STEPS, WHOLE
from max_zimage.compile.ahead_of_time import FULL_MODEL
from tests.benchmarks.test_gpu_run import lines

OWN_GRAPHS = ("ops", "block", "decode", "counters")
"""Steps that compile graphs which nothing else does."""

Rows = list[dict[str, str]]


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> dict[str, Rows]:
    """Rows by step but those that say that it is whole; nothing may have failed."""
    for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "OTEL_SDK_DISABLED"):  # which a run sets for what it starts
        monkeypatch.setenv(name, "1" if name != "PYTHONPATH" else "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    status = command.main([*names, "--small", "--work", str(folder), "--budget", "3000"])
    found = lines(folder / "small.csv")
    assert [line for line in found if line["state"] not in ("ok", "skipped")] == []
    assert status == 0
    assert {line["step"] for line in found if line["part"] == WHOLE} >= set(names)
    return {name: [line for line in found if line["step"] == name and line["part"] != WHOLE] for name in names}


def test_steps_that_need_no_graph_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(name for name in STEPS if name not in OWN_GRAPHS)
    found = run(tmp_path, monkeypatch, names)
    assert {name: bool(rows) for name, rows in found.items()} == dict.fromkeys(names, True)
    assert all(float(row["gflop_per_s"]) > 0 for row in found["products"] if row["state"] == "ok")
    assert {row["state"] for row in found["replay"]} == {"skipped"}
    drawn = {row["case"]: row for row in found["pictures"]}
    assert drawn["Turbo 128x128: denoise"]["n"] == "2"
    work = [
        float(row["gflop_per_s"]) * float(row["median_s"])
        for row in (drawn[f"Turbo 128x128: {name}"] for name in ("prompt to picture", "denoise"))
    ]
    assert work[0] == pytest.approx(2 * work[1], rel=1e-2)
    whole = float(drawn["Turbo 128x128: prompt to picture"]["median_s"])
    theirs = {(row["case"], row["variant"]): row for row in found["peers"]}
    for variant in (EAGER, COMPILED):
        beside = theirs["Turbo 128x128: ours beside", variant]
        assert float(beside["psnr_db"]) > 50
        seconds = float(theirs["Turbo 128x128: prompt to picture", variant]["median_s"])
        assert float(beside["speedup"]) == pytest.approx(seconds / whole, rel=1e-2)
    assert "passed, 0 failed" in found["tests"][0]["note"]

    before = (tmp_path / "small.csv").read_text()
    run(tmp_path, monkeypatch, ("machine", "products", "fp8"))
    assert (tmp_path / "small.csv").read_text() == before  # not a digit is measured again


@pytest.mark.slow
def test_steps_that_compile_their_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(tmp_path, monkeypatch, OWN_GRAPHS)
    assert {name: bool(rows) for name, rows in found.items()} == dict.fromkeys(OWN_GRAPHS, True)
    judged = [row for row in (*found["ops"], *found["decode"]) if row["expected"]]
    assert {row["verdict"] for row in judged} == {"met"}
    cases = {row["case"] for row in judged}
    assert {"query against float64", "attention against float64", "block against float64", "decode 64x64"} <= cases
    timed = {row["part"] for row in found["block"] if row["median_s"]}
    assert timed == {"variants", "attention", "products", "between products"}


def test_work_of_a_step() -> None:
    case = Case(side=1024, steps=8, repeats=1)
    # 4,096 image tokens and 32 of the caption; without the context refiner, which is not part of a step.
    assert step_gflop(FULL_MODEL.transformer, case, 20) == pytest.approx(55_000, rel=0.01)


def test_the_profilers_table_becomes_rows() -> None:
    columns = {
        "ID": ("", "0"),
        "Kernel Name": ("", "gated_norms"),
        "Block Size": ("", "(160, 1, 1)"),
        "Grid Size": ("", "(4160, 1, 1)"),
        "dram__bytes.sum": ("byte", "128,000,000"),
        "dram__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "85.20"),
        "gpu__time_duration.sum": ("ns", "35,000"),
        "launch__registers_per_thread": ("register/thread", "56"),
        "sm__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "31.5"),
        "smsp__inst_executed.sum": ("inst", "6,389,760"),
    }
    table = [[*columns], *([cells[line] for cells in columns.values()] for line in (0, 1))]
    said = "==PROF== Connected to process 7\n" + "".join(
        ",".join(f'"{cell}"' for cell in line) + "\n" for line in table
    )
    (row,) = counters.parsed(said)
    assert (row.case, row.variant, row.sizes) == ("launch 1", "gated_norms", "grid (4160, 1, 1), block (160, 1, 1)")
    assert row.figures["gbyte_per_s"] == pytest.approx(0.128 / 35e-6)
    assert row.note == "memory 85 %, processors 32 % of their peak, 6.39e+06 warp instructions, 56 registers"
    with pytest.raises(ValueError, match=r"other units .*'usecond'"):
        list(counters.parsed(said.replace('"ns"', '"usecond"')))
    assert list(counters.parsed("==ERROR== no permission\n")) == []


def test_results_of_tests_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1" time="12.5">'
        '<testcase classname="tests.test_a" name="b"><failure message="assert 1 == 2&#10;more"/></testcase>'
        '<testcase classname="tests.test_a" name="c"><error message="boom"/></testcase></testsuite></testsuites>'
    )
    whole, failure, error = gpu_tests.results(report, "test_a")
    assert (whole.note, whole.state) == ("2 passed, 2 failed, 1 skipped", "failed")
    assert whole.timing is not None
    assert whole.timing.median == 12.5
    assert (failure.case, failure.note) == ("tests.test_a.b", "assert 1 == 2")
    assert (error.case, error.note) == ("tests.test_a.c", "boom")
