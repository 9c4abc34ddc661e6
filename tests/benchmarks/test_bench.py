"""The benchmark's own arithmetic, and one of its parts from the command line to the file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import measure, operations
from benchmarks import processor as naming
from benchmarks.attention import FULL as FULL_ATTENTION
from benchmarks.measure import COLUMNS, Conditions, Row, Timing
from benchmarks.start import run
from max_zimage.host.processor import processor


def conditions() -> Conditions:
    return Conditions(
        date="2026-01-02",
        cpu="a cpu",
        cores=2,
        gpu="",
        driver="",
        python="3.11.7",
        max="26.7.0",
        torch="2.13.0",
        diffusers="0.42.1",
        commit="abc1234",
        load_before=0.5,
    )


def row(variant: str, seconds: list[float], *, reference: bool = False, **more: Any) -> Row:
    return Row(
        case="case",
        variant=variant,
        dtype="float32",
        sizes="1x1",
        timing=Timing.of(seconds),
        reference=reference,
        **more,
    )


def test_a_timing_is_median_and_quantiles() -> None:
    timing = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (timing.n, timing.median) == (6, 3.5)
    assert (timing.p20, timing.p80) == (2.0, 5.0)
    with pytest.raises(ValueError, match="at least one call"):
        Timing.of([])


def test_competitors_take_turns_and_warm_up_untimed() -> None:
    calls: list[str] = []
    timings = measure.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, warmups=1)
    assert calls == ["a", "b"] * 3
    assert {name: timing.n for name, timing in timings.items()} == {"a": 2, "b": 2}


def test_rates_shares_and_ratios() -> None:
    slow = row("slow", [2.0], reference=True)
    fast = row("fast", [0.5], gflop=100.0, roof=400.0)
    assert (fast.rate, fast.roof_share) == (200.0, 0.5)
    assert measure.speedup(fast, [slow, fast]) == 4.0
    assert measure.speedup(slow, [slow, fast]) == 1.0
    assert slow.rate is None
    assert measure.speedup(fast, [fast]) is None


def test_differences_of_pictures_and_numbers() -> None:
    black, one = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    assert measure.psnr(black, black) == float("inf")
    assert measure.psnr(black, one) == pytest.approx(20 * np.log10(255))
    assert measure.max_abs(black, one) == 1.0  # and not 255, as unsigned arithmetic would have it
    assert measure.relative_l2(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)


def test_a_row_becomes_a_line_with_all_columns(tmp_path: Path) -> None:
    rows = [row("slow", [2.0], reference=True), row("fast", [0.5, 0.5], gflop=100.0, roof=400.0)]
    rows.append(Row(case="case", variant="broken", dtype="float32", sizes="1x1", note="does not run: no, really"))
    file = tmp_path / "new" / "part.csv"
    measure.write_csv(file, rows, conditions())
    with file.open(newline="") as opened:
        slow, fast, broken = list(csv.DictReader(opened))
    assert tuple(fast) == COLUMNS
    assert (fast["n"], fast["median_s"], fast["speedup"], fast["gflop_per_s"]) == ("2", "0.5", "4", "200")
    assert (fast["roof_share"], fast["cpu"], fast["commit"]) == ("0.5", "a cpu", "abc1234")
    assert (slow["speedup"], slow["gflop"], broken["median_s"]) == ("1", "", "")
    assert broken["note"] == "does not run: no, really"

    header, rule, *lines = measure.table(rows, conditions()).splitlines()
    assert "median_s" in header
    assert "psnr_db" not in header
    assert "commit" not in header
    assert len(lines) == 3
    assert {line.count("|") for line in (header, rule, *lines)} == {header.count("|")}


def test_a_failure_is_told_in_one_line() -> None:
    assert measure.first_line(RuntimeError("\n  no compiler\n\nlong story")) == "RuntimeError: no compiler"
    assert measure.first_line(ValueError()) == "ValueError: "


def test_work_of_attention() -> None:
    assert FULL_ATTENTION.gflop == pytest.approx(2 * 2 * 4128 * 4128 * 3840 / 1e9)


def test_every_moment_of_a_call_counts_for_one_kind_of_operation() -> None:
    log = [
        (0.0, "CALL"),
        (0.5, "[OP] LAUNCH Horizontal(View(static.reshape, slice), View(static.reshape, slice)) [id=0] target=cpu:0"),
        (1.0, "[OP] LAUNCH matmul [id=1] target=cpu:0"),
        (1.0, "[OP] LAUNCH matmulmo.matmul [id=2] target=cpu:0"),
        (3.0, "[OP] COMPLETE matmulmo.matmul [id=2] target=cpu:0"),
        (2.9, "[OP] COMPLETE Horizontal(View(static.reshape, slice), View(static.reshape, slice)) [id=0] target=cpu:0"),
        (3.0, "[OP] COMPLETE matmul [id=1] target=cpu:0"),
        (3.0, "[OP] LAUNCH Epilogue(Prologue(static.reshape, concat), Elementwise(cast)) [id=3] target=cpu:0"),
        (3.5, "[OP] COMPLETE Epilogue(Prologue(static.reshape, concat), Elementwise(cast)) [id=3] target=cpu:0"),
        (4.0, "CALL"),
        (4.0, "[OP] LAUNCH matmul [id=1] target=cpu:0"),
        (5.0, "[OP] COMPLETE matmul [id=1] target=cpu:0"),
        (6.0, "CALL"),
        (6.0, "[OP] LAUNCH gated_linear [id=4] target=cpu:0"),
        (8.0, "[OP] COMPLETE gated_linear [id=4] target=cpu:0"),
        (8.0, "[OP] LAUNCH linear [id=5] target=cpu:0"),
        (9.0, "[OP] COMPLETE linear [id=5] target=cpu:0"),
        (9.0, "[OP] LAUNCH attention [id=6] target=cpu:0"),
        (9.5, "[OP] COMPLETE attention [id=6] target=cpu:0"),
        (9.5, "END"),
    ]
    summed = operations.seconds_by_kind(log)
    assert summed["matrix products"] == [2.0, 1.0, 3.0]
    assert summed["attention"] == [0.0, 0.0, 0.5]
    assert summed["RoPE"] == [1.0, 0.0, 0.0]  # without what ran beside the product
    assert summed["other"] == [1.0, 1.0, 0.0]
    assert summed["the whole call"] == [4.0, 2.0, 3.5]


def test_a_process_is_timed_to_its_picture_and_its_memory_measured() -> None:
    begun = "import time; held = bytearray(64 * 2**20); print('picture', flush=True); time.sleep(0.5)\n"
    measured = run(begun, {})
    assert measured.seconds > 0
    assert measured.peak_mib > 64
    with pytest.raises(RuntimeError, match=r"no picture(.|\n)*what went wrong"):
        run("raise SystemExit('what went wrong')", {})


@pytest.mark.parametrize(("arguments", "said"), [(["nosuch"], "unknown part nosuch"), (["--repeats", "0"], "got 0")])
def test_bad_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err


def test_a_part_runs_and_writes_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The one part that compiles nothing which other tests have not compiled already: the embedded model's graphs.
    assert command.main(["end_to_end", "--quick", "--output", str(tmp_path)]) == 0
    with (tmp_path / "end_to_end.csv").open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    assert tuple(lines[0]) == COLUMNS
    plain = {line["variant"]: line for line in lines if line["case"].endswith("96x96, 2 steps, guidance 2")}
    assert set(plain) == {"diffusers", "ours"}
    pictures = {line["variant"]: line for line in lines if "picture, 96x96, 12 steps" in line["case"]}
    assert set(pictures) == {"diffusers", "ours", "ours, first_block", "ours, taylorseer"}
    assert (pictures["diffusers"]["psnr_db"], pictures["diffusers"]["speedup"]) == ("inf", "1")
    assert float(pictures["ours"]["max_abs"]) <= 1
    stages = {line["case"].partition(",")[0] for line in lines if line["case"].endswith("2 steps, guidance 2")}
    assert stages == {"prompt to picture", "to the first step's end", "a further step", "VAE"}
    *timed, built_in = lines
    assert all(float(line["median_s"]) > 0 and line["n"] == "1" for line in timed)
    assert (built_in["case"], built_in["median_s"]) == ("MAX's built-in pipeline", "")
    assert "No main model configured" in built_in["note"]
    assert "| ours |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"avx2", "avx512f", "avx512_bf16", "amx_bf16"}, " (AMX)"),
        ({"avx2", "avx512f", "avx512_bf16"}, " (AVX-512 BF16)"),
        ({"avx2", "fma"}, " (AVX2)"),
        (set(), ""),
    ],
)
def test_results_name_the_widest_instructions(flags: set[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "instructions", lambda: frozenset(flags))
    assert naming.processor_and_instructions() == processor() + said
