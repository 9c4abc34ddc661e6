"""The profiler's sweep: prompts encoded and a picture drawn in every configuration, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import ROOT, Row, Timing
from max_zimage.cli.sweep_configurations import BASELINE

CASES = {"encode_medium": "a prompt encoded", "full_generation": "a picture drawn"}
"""Test of the profiler -> what a row says of it."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is swept over.

    Attributes:
        configurations: As of `max-zimage profile --sweep`.
        side: Of the picture, in pixels.
        steps: Of it.
        guidance: Of it.
    """

    configurations: str = "all"
    side: int = 128
    steps: int = 8
    guidance: float = 2.0


FULL, QUICK = Size(), Size(configurations=BASELINE, side=64, steps=2)


def rows(size: Size, repeats: int) -> list[Row]:
    """Have the profiler measure all of them.

    Raises:
        RuntimeError: If it says nothing.
    """
    flags = {"sweep": size.configurations, "steps": size.steps, "guidance": size.guidance, "repeat": repeats}
    flags |= {"height": size.side, "width": size.side, "device": "cpu"}
    words = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, "-m", "max_zimage", "profile", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["sweep"]
    except ValueError as error:
        raise RuntimeError(f"the profiler ended with {done.returncode}:\n{done.stderr[-2000:]}") from error
    return list(_rows(found, size))


def _rows(found: Sequence[Mapping[str, Any]], size: Size) -> Iterator[Row]:
    for case, said in CASES.items():
        for each in found:
            tests = {test["test"]: test for test in each["tests"]}
            runs = tests.get(case, {}).get("runs_ms")
            failure = each.get("error") or tests.get(case, {}).get("error") or ""
            load = each.get("load_seconds")
            yield Row(
                case=said,
                variant=each["configuration"],
                dtype="bfloat16" if each["configuration"] == "bfloat16" else "float32",
                sizes=f"{size.side}x{size.side}, {size.steps} steps, guidance {size.guidance:g}",
                timing=Timing.of([ms / 1000 for ms in runs]) if runs else None,
                peak_mib=each["memory_peak"] / 2**20 if each.get("memory_peak") else None,
                reference=each["configuration"] == BASELINE,
                note=failure or (f"loaded in {load:.1f} s" if load is not None else ""),
            )
