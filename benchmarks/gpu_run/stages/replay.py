"""The same pictures with steps and text encoder replayed as device graphs: as fast, as right, and launch by launch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import numpy as np

from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.drawing import Case, cases, draw, pipeline, timed_graphs
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.measure import Timing, max_abs, psnr, seconds_of
from max_zimage.compile import device_graphs

_BEFORE = 3
"""Pictures after which everything that is recorded has been: a call is recorded when its sizes come again."""


def parts(bench: Bench) -> list[Part]:
    """Every case, then what MAX says of the recordings."""
    drawn = [Part(name=case.name, seconds=15, measure=partial(_measured, bench, case)) for case in cases(bench)]
    return [*drawn, Part(name="verified", seconds=10, measure=lambda: _verified(bench))]


def _measured(bench: Bench, case: Case) -> Iterator[Row]:
    """Beside what was drawn without, in the same process."""
    if not device_graphs.possible(bench.device):
        yield _row(bench, case, "prompt to picture", state="skipped", note="device graphs are for NVIDIA GPUs")
        return
    plain = draw(bench, case)
    before = Timing.of([seconds_of(lambda: draw(bench, case)) for _ in range(case.repeats)])
    with patch.dict(os.environ, {device_graphs.VARIABLE: "on"}):
        for _ in range(_BEFORE):
            picture = draw(bench, case)
        timing = Timing.of([seconds_of(lambda: draw(bench, case)) for _ in range(case.repeats)])
        with timed_graphs(bench.device) as graphs:
            draw(bench, case)
    held = sum(len(each.device_graphs) for each in _recorded(bench))
    yield _row(
        bench,
        case,
        "prompt to picture",
        timing=timing,
        speedup=before.median / timing.median,
        psnr_db=psnr(picture, plain),
        max_abs=max_abs(picture, plain),
        peak_mib=bench.used_mib(),
        value=float(held),
        note=f"against {before.median:.4g} s without; the value counts recordings",
    )
    for name in ("text_encoder", "denoise"):
        yield _row(bench, case, name, timing=Timing.of(graphs[name]))


def _verified(bench: Bench) -> Iterator[Row]:
    """MAX compares the launches of each recording with those of a run; it raises where they differ."""
    if not device_graphs.possible(bench.device):
        yield Row(case="replays verified", variant="ours", state="skipped", note="device graphs are for NVIDIA GPUs")
        return
    graphs = _recorded(bench)
    for each in graphs:
        each.device_graphs.verify()
    held = {each.name: len(each.device_graphs) for each in graphs}
    note = ", ".join(f"{name}: {count} recordings" for name, count in held.items())
    if not np.all(list(held.values())):
        raise RuntimeError(f"not everything was recorded: {note}")
    yield Row(case="replays verified", variant="ours", value=float(sum(held.values())), note=note)


def _recorded(bench: Bench):
    drawn = pipeline(bench)
    graphs = (drawn.text_encoder.model, drawn.transformer.model)
    return [graph for graph in graphs if graph.device_graphs is not None]


def _row(bench: Bench, case: Case, what: str, **more) -> Row:
    return Row(case=f"{case.name}: {what}", variant="replayed", dtype=bench.dtype, sizes=case.sizes, **more)
