"""The checkpoint of the published size, which a writer in the background has begun before."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.gpu_run import checkpoint
from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.measure import Timing

SECONDS = 150.0
"""To wait at most: half a minute on 16 cores, two minutes on two."""


def parts(bench: Bench) -> list[Part]:
    """Wait for it."""
    return [Part(name="written", seconds=40, measure=lambda: _written(bench))]


def _written(bench: Bench) -> Iterator[Row]:
    begin = time.perf_counter()
    folder = checkpoint.wait(bench.work, small=bench.small, seconds=SECONDS)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    waited = Timing.of([time.perf_counter() - begin])
    yield Row(case="checkpoint", variant="waited for", dtype=bench.dtype, timing=waited, value=size / 1e9, note="GB")
