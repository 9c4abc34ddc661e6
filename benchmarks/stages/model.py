"""The checkpoint, written, and its graphs, compiled."""

from __future__ import annotations

import time

from benchmarks.checkpoints.shapes import size_of
from benchmarks.make_checkpoint import write_checkpoint
from benchmarks.measure import Row, Timing
from benchmarks.stages import setting
from benchmarks.stages.stage import Stage
from max_zimage import ZImagePipeline, compiler
from max_zimage.progress import Silent, shown_by


def run(stage: Stage) -> None:
    """Write, check, load and compile.

    A stage that ran out of time while it compiled finds the graphs that were done on disk.
    """
    complete = (setting.checkpoint(stage) / "model_index.json").is_file()
    if stage.step("checkpoint", lambda: _write(stage), keep=complete):
        stage.step("graphs", lambda: _compile(stage), keep=False)


def _write(stage: Stage) -> list[Row]:
    folder = setting.checkpoint(stage)
    begin = time.perf_counter()
    size = size_of("small" if stage.small else "full", turbo=True)
    said = write_checkpoint(folder, size, dtype=setting.dtype(stage), force=True)
    stage.log(f"{folder}: {said}")
    return [_row("checkpoint", "written", stage, time.perf_counter() - begin, said)]


def _compile(stage: Stage) -> list[Row]:
    """Load the pipeline; every graph tells when it is ready."""
    device = "cpu" if stage.small else "gpu"
    begin = time.perf_counter()
    prepared = ZImagePipeline.prepare(setting.checkpoint(stage), device=device, dtype=setting.dtype(stage))
    rows = [_row("checkpoint", "checked", stage, time.perf_counter() - begin)]
    watch, before = _Watch(stage), dict(compiler.counts)
    with shown_by(watch):
        ZImagePipeline.from_prepared(prepared)
    found, compiled = (compiler.counts[name] - before.get(name, 0) for name in ("hits", "misses"))
    said = f"{found} of {found + compiled} modules found on disk"
    rows.append(_row("pipeline", "ready", stage, time.perf_counter() - begin, said))
    return [*rows, *watch.rows]


def _row(case: str, variant: str, stage: Stage, seconds: float, note: str = "") -> Row:
    timing = Timing.of([seconds])
    return Row(case=case, variant=variant, dtype=setting.dtype(stage), sizes="", timing=timing, note=note)


class _Watch(Silent):
    """Seconds from one graph to the next. On a CPU the first one's are those of all, which are one module there."""

    def __init__(self, stage: Stage) -> None:
        self.rows: list[Row] = []
        self._stage, self._last = stage, time.perf_counter()

    def begin(self, stage: str, total: int) -> None:
        self._last = time.perf_counter()
        self._stage.log(f"{stage}: {total}")

    def advance(self, label: str) -> None:
        now = time.perf_counter()
        self.rows.append(_row("graph ready", label, self._stage, now - self._last))
        self._stage.log(f"{label} after {now - self._last:.1f} s")
        self._last = now
