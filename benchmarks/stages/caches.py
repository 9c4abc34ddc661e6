"""Step caches: what they save and what they change, against computing every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import max_zimage
from benchmarks.measure import Row, Timing, max_abs, psnr
from benchmarks.stages import setting
from benchmarks.stages.setting import Case, Picture
from benchmarks.stages.stage import Stage
from max_zimage import ZImagePipeline

PLAIN = "every step computed"


def run(stage: Stage) -> None:
    """Measure every case with and without each cache."""
    pipelines: list[ZImagePipeline] = []
    if not stage.step("load", lambda: _load(stage, pipelines), keep=False):
        return
    for case in setting.cases(stage):
        plain: list[Picture] = []
        if stage.step(f"{case.name}, {PLAIN}", _measuring(stage, pipelines[0], case, PLAIN, plain), keep=False):
            for name in _CACHES:
                stage.step(f"{case.name}, {name}", _measuring(stage, pipelines[0], case, name, plain))


def _load(stage: Stage, pipelines: list[ZImagePipeline]) -> list[Row]:
    pipelines.append(setting.load(stage))
    return []


# Looked up when a cache is measured: a version without it gets a row that says so.
_CACHES: dict[str, Callable[[], Any]] = {
    "FirstBlockCache, threshold 0.06": lambda: _named("FirstBlockCache")(threshold=0.06),
    "TaylorSeer, interval 5, order 1": lambda: _named("TaylorSeer")(cache_interval=5, warmup_steps=9, max_order=1),
}


def _named(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(max_zimage, name)
    return found


def _measuring(
    stage: Stage, pipeline: ZImagePipeline, case: Case, name: str, plain: list[Picture]
) -> Callable[[], list[Row]]:
    def measure() -> list[Row]:
        more = {} if name == PLAIN else {"step_cache": _CACHES[name]()}
        timing = Timing.of(setting.repeated(lambda: setting.draw(pipeline, case, **more), case.repeats))
        picture = setting.draw(pipeline, case, **more)
        if name == PLAIN:
            plain.append(picture)
        return [
            Row(
                case=f"{case.name}: step caches",
                variant=name,
                dtype=setting.dtype(stage),
                sizes=case.sizes,
                timing=timing,
                psnr_db=psnr(picture, plain[0]),
                max_abs=max_abs(picture, plain[0]),
                reference=name == PLAIN,
            )
        ]

    return measure
