"""Hardware counters of attention and of what stands between the products, by Nsight Compute.

It measures each launch of a process that calls every graph once: `python -m benchmarks.gpu_run.stages.counters DIR`.
The clocks are left as they are.

Reference: Nsight Compute documentation, command line interface and metrics.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.loading import load, random_numbers
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.measure import ROOT, Timing

SETS = ("attentions", "elementwise")
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes.sum": "byte",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "%",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "%",
    "smsp__inst_executed.sum": "inst",
    "launch__registers_per_thread": "register/thread",
}
"""What is asked for, in the units of `--print-units base`."""
_SECONDS = 40
_PLACES = ("ncu", "/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu")


def parts(bench: Bench) -> list[Part]:
    """All graphs in one run of the profiler."""
    return [Part(name="launches", seconds=_SECONDS, measure=lambda: _measured(bench))]


def _measured(bench: Bench) -> Iterator[Row]:
    run = [
        sys.executable,
        "-m",
        "benchmarks.gpu_run.stages.counters",
        str(bench.work),
        "small" if bench.small else "full",
    ]
    profiler = next(filter(None, map(shutil.which, _PLACES)), None)
    if profiler is None:
        said = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        yield Row(case="counters", variant="Nsight Compute", state="skipped", note=f"there is no ncu; {said.strip()}")
        return
    how = [profiler, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    done = subprocess.run([*how, "--metrics", ",".join(METRICS), *run], cwd=ROOT, capture_output=True, text=True)
    rows = list(parsed(done.stdout))
    if done.returncode or not rows:
        raise RuntimeError(f"ncu ended with {done.returncode}: {(done.stderr + done.stdout).strip()[-300:]}")
    yield from rows


def parsed(said: str) -> Iterator[Row]:
    """The profiler's table: a line of names, one of units, then one a launch.

    Raises:
        ValueError: If a unit is another than was asked for.
    """
    lines = said.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    reader = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    for number, line in enumerate(reader):
        if number == 0:
            wrong = {name: line[name] for name, unit in METRICS.items() if line[name] not in (unit, "")}
            if wrong:
                raise ValueError(f"ncu has other units than {METRICS}: {wrong}")
            continue
        duration, moved, *rest = (float(line[name].replace(",", "")) for name in METRICS)
        memory, processors, instructions, registers = rest
        yield Row(
            case=f"launch {number}",
            variant=line["Kernel Name"][:120],
            sizes=f"grid {line.get('Grid Size', '')}, block {line.get('Block Size', '')}",
            timing=Timing.of([1e-9 * duration]),
            gbyte=1e-9 * moved,
            note=f"memory {memory:.0f} %, processors {processors:.0f} % of their peak, "
            f"{instructions:.4g} warp instructions, {registers:.0f} registers",
        )


def call_once(bench: Bench) -> int:
    """Call every graph of the sets once; how many there were."""
    shape, called = bench.shape, 0
    for name in SETS:
        for graph in load(bench, name, random_numbers).values():
            arguments = []
            for each in graph.variant.types:
                sides = [int(side) if str(side).isdigit() else 1 for side in each.shape]
                if str(each.dtype).endswith("uint32"):
                    arguments.append(
                        bench.integers([0, shape.tokens] if str(each.shape[0]) == "offsets" else [shape.tokens])
                    )
                    continue
                sides = [
                    shape.tokens if str(side) == "length" else number
                    for side, number in zip(each.shape, sides, strict=True)
                ]
                numbers = torch.randn(sides)
                arguments.append(
                    bench.upload(numbers if each.dtype.name == "float32" else numbers.to(bench.torch_dtype))
                )
            graph(*arguments)
            bench.synchronize()
            called += 1
    return called


def main() -> None:
    """What the profiler runs."""
    bench = Bench(work=Path(sys.argv[1]), small=sys.argv[2] == "small")
    print(f"{call_once(bench)} graphs called")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
