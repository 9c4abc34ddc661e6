"""From a prompt to a picture with our pipeline, then once more graph by graph."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.drawing import PROMPT, Case, cases, draw, pipeline, step_gflop, timed_graphs
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.measure import Timing, seconds_of
from max_zimage.compile import modules


def parts(bench: Bench) -> list[Part]:
    """Every case. The first one to be measured loads the model."""
    loading = Part(name="load", seconds=30, measure=lambda: _loaded(bench))
    drawn = [Part(name=case.name, seconds=20, measure=partial(_measured, bench, case)) for case in cases(bench)]
    return [loading, *drawn]


def _loaded(bench: Bench) -> Iterator[Row]:
    before, begin = dict(modules.counts), time.perf_counter()
    pipeline(bench)
    taken = Timing.of([time.perf_counter() - begin])
    found, compiled = (modules.counts[name] - before.get(name, 0) for name in ("hits", "misses"))
    note = f"{found} modules found on disk, {compiled} compiled"
    yield Row(case="pipeline", variant="ours", dtype=bench.dtype, timing=taken, peak_mib=bench.used_mib(), note=note)


def _measured(bench: Bench, case: Case) -> Iterator[Row]:
    drawn = pipeline(bench)
    picture = draw(bench, case)
    np.save(case.file(bench), picture)
    seconds = [seconds_of(lambda: draw(bench, case)) for _ in range(case.repeats)]
    gflop = step_gflop(drawn.transformer.spec, case, len(drawn.tokenizer.encode(PROMPT)))
    whole = Timing.of(seconds)
    yield _row(bench, case, "prompt to picture", whole, gflop=case.steps * gflop, peak_mib=bench.used_mib())
    with timed_graphs(bench.device) as graphs:
        draw(bench, case)
    for name, taken in graphs.items():
        work = gflop if name == "denoise" else None
        yield _row(bench, case, name, Timing.of(taken), gflop=work, note=f"{sum(taken):.4g} s in all")
    rest = whole.median - sum(map(sum, graphs.values()))
    yield _row(
        bench, case, "between graphs", None, value=rest, note="s more than the graphs, which waited for each other"
    )


def _row(
    bench: Bench,
    case: Case,
    what: str,
    timing: Timing | None,
    *,
    gflop: float | None = None,
    peak_mib: float | None = None,
    value: float | None = None,
    note: str = "",
) -> Row:
    return Row(
        case=f"{case.name}: {what}",
        variant="ours",
        dtype=bench.dtype,
        sizes=case.sizes,
        timing=timing,
        gflop=gflop,
        peak_mib=peak_mib,
        value=value,
        note=note,
    )
