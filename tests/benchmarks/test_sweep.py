"""The benchmark of the profiler's sweep: a row for each test in each configuration, and what failed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import report, sweep, sweep_table
from benchmarks.measure import RESULTS, speedup


def facts(name: str, encode: list[float], draw: list[float] | None) -> dict[str, Any]:
    tests = [{"test": "encode_medium", "runs_ms": encode, "error": None}]
    tests.append({"test": "full_generation", "runs_ms": draw, "error": None if draw else "it does not fit"})
    return {"configuration": name, "tests": tests, "load_seconds": 1.25, "memory_peak": 3 * 2**20}


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    found = [facts("baseline", [2.0, 4.0, 3.0], [100.0]), facts("bfloat16", [1.5], None)]
    found.append({"configuration": "q4", "error": "no room", "tests": []})

    class Done:
        returncode = 1
        stderr = "no room"

        def __init__(self, command: list[str], **_: object) -> None:
            asked.append(command)
            self.stdout = json.dumps({"sweep": found})

    monkeypatch.setattr("subprocess.run", Done)
    rows = sweep.rows(sweep.FULL, 3)
    assert {"--sweep=all", "--steps=8", "--repeat=3", "--height=128", "--json"} <= {*asked[0]}
    encode, draw = ([row for row in rows if row.case == case] for case in sweep.CASES.values())
    assert [row.variant for row in encode] == [row.variant for row in draw] == ["baseline", "bfloat16", "q4"]
    assert [row.timing and row.timing.median for row in encode] == [0.003, 0.0015, None]
    assert [row.timing and row.timing.median for row in draw] == [0.1, None, None]
    assert [row.note for row in draw] == ["loaded in 1.2 s", "it does not fit", "no room"]
    assert [row.dtype for row in draw] == ["float32", "bfloat16", "float32"]
    assert (draw[0].peak_mib, speedup(encode[1], encode)) == (3.0, 2.0)
    monkeypatch.setattr(Done, "__init__", lambda self, command, **_: setattr(self, "stdout", ""))
    with pytest.raises(RuntimeError, match="the profiler ended with 1:\nno room"):
        sweep.rows(sweep.QUICK, 1)


def test_the_table_has_parts_and_total_abreast() -> None:
    lines = [
        {"case": case, "variant": name, "median_s": seconds, "peak_mib": "5", "note": note}
        for case, figures in zip(sweep.CASES.values(), (("0.25", "0.5", "1"), ("1.75", "0.5", "")), strict=True)
        for name, seconds, note in zip(("baseline", "int8", "q4"), figures, ("", "", "a|b"), strict=True)
    ]
    heading, rule, *rows = sweep_table.table(lines).splitlines()
    assert heading == "| configuration | encoding, s | drawing, s | total, s | speed | MiB | note |"
    assert rule.count("---:") == 5
    assert rows == [
        "| baseline | 0.250 | 1.75 | 2.00 | 1.00x | 5 |  |",
        "| int8 | 0.500 | 0.500 | 1.00 | 2.00x | 5 |  |",
        "| q4 | 1.00 |  |  |  | 5 | a\\|b |",
    ]
    with pytest.raises(ValueError, match=r"sweep.csv has no q4 under \[.a picture drawn.\]; measure it: make bench"):
        sweep_table.table(lines[:-1])
    said = report.section("sweep", report.lines_of(RESULTS, "sweep"))
    assert said.splitlines()[1] == heading
    assert "medians of n = " in said
