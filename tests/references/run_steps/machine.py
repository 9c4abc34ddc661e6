"""A step that counts its calls, fails where it is told to, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial

from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.measure import Timing
from tests.references.run_steps import Bench


def parts(bench: Bench) -> list[Part]:
    """What a file in the work folder names, in order."""
    told = (bench.work / "parts").read_text(encoding="utf-8").split()
    return [Part(name=name, seconds=SECONDS.get(name, 0.0), measure=partial(_measured, bench, name)) for name in told]


SECONDS = {"endless": -9.0, "long": 1e6}
"""The limit of the first is three seconds; the second fits no budget."""


def _measured(bench: Bench, name: str) -> list[Row]:
    with (bench.work / "called").open("a") as file:
        file.write(f"{name} {os.getpid()}\n")
    if name == "broken" and not (bench.work / "mended").exists():
        raise RuntimeError("no kernel\nand more")
    if name == "endless":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (bench.work / "pid").write_text(str(child.pid))
        (bench.work / f".gpu.csv.{os.getpid()}").write_text("half of a f")
        time.sleep(600)
    if name == "crashing":
        os.abort()
    if name == "deaf":
        bench.hears = False
        raise RuntimeError("illegal memory access")
    if name == "wrong":
        return [Row(case=name, variant="ours", relative_l2=0.5, allowed=0.01)]
    return [Row(case=name, variant="ours", timing=Timing.of([0.5, 0.5]), gflop=2.0)]
