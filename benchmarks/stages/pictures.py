"""Prompt to picture with our pipeline, and the seconds of each compiled graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.measure import Row, Timing
from benchmarks.stages import setting
from benchmarks.stages.setting import Case
from benchmarks.stages.stage import Stage
from max_zimage import ZImagePipeline


def run(stage: Stage) -> None:
    """Measure the machine's roof, then every case, the short ones first."""
    roofs: dict[str, float] = {}
    stage.step("roof", lambda: _roof(stage, roofs), keep=False)
    pipelines: list[ZImagePipeline] = []
    if not stage.step("load", lambda: _load(stage, pipelines), keep=False):
        return
    for case in setting.cases(stage):
        drawn = setting.picture_file(stage, case).exists()
        stage.step(case.name, _measuring(stage, pipelines[0], case, roofs), keep=drawn)


def _roof(stage: Stage, roofs: dict[str, float]) -> list[Row]:
    rate = setting.roof(stage)
    roofs["now"] = rate
    return [Row(case="roof", variant="torch matmul", dtype=setting.dtype(stage), sizes="", roof=rate)]


def _load(stage: Stage, pipelines: list[ZImagePipeline]) -> list[Row]:
    pipelines.append(setting.load(stage))
    return []


def _measuring(stage: Stage, pipeline: ZImagePipeline, case: Case, roofs: dict[str, float]) -> Callable[[], list[Row]]:
    return lambda: _measure(stage, pipeline, case, roofs.get("now"))


def _measure(stage: Stage, pipeline: ZImagePipeline, case: Case, roof: float | None) -> list[Row]:
    """End to end, then once more graph by graph."""
    seconds = setting.repeated(lambda: setting.draw(pipeline, case), case.repeats)
    with setting.timed_graphs(pipeline.device) as graphs:
        picture = setting.draw(pipeline, case)
    gflop = setting.step_gflop(pipeline.transformer.spec, case, len(pipeline.tokenizer.encode(setting.PROMPT)))
    if picture.std() == 0:
        raise ValueError(f"every value of the picture is {picture.flat[0]}: not-a-number somewhere on the way")
    np.save(setting.picture_file(stage, case), picture)
    whole = Timing.of(seconds)
    rows = [
        _row(stage, case, "prompt to picture", whole, gflop=gflop * case.steps, roof=roof, peak=setting.used_mib(stage))
    ]
    for name, taken in graphs.items():
        work = {"gflop": gflop, "roof": roof} if name == "denoise" else {}
        rows.append(_row(stage, case, name, Timing.of(taken), note=f"{sum(taken):.4g} s in all", **work))
    rest = whole.median - sum(map(sum, graphs.values()))
    stage.log(f"{case.name}: {whole.median:.4g} s; {rest:.4g} s more than the graphs, which waited for each other")
    return rows


def _row(
    stage: Stage,
    case: Case,
    what: str,
    timing: Timing,
    *,
    gflop: float | None = None,
    roof: float | None = None,
    peak: float | None = None,
    note: str = "",
) -> Row:
    return Row(
        case=f"{case.name}: {what}",
        variant="ours",
        dtype=setting.dtype(stage),
        sizes=case.sizes,
        timing=timing,
        gflop=gflop,
        roof=roof,
        peak_mib=peak,
        note=note,
    )
