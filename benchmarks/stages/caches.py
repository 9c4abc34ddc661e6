"""Step caches: what they save and what they change, against computing every step."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import Row, Timing, max_abs, psnr
from benchmarks.stages import setting
from benchmarks.stages.setting import Case, Picture
from benchmarks.stages.stage import Stage
from max_zimage import FirstBlockCache, TaylorSeer, ZImagePipeline
from max_zimage.step_cache import StepCache

PLAIN = "every step computed"


def run(stage: Stage) -> None:
    """Measure every case with and without each cache."""
    pipelines: list[ZImagePipeline] = []
    if not stage.step("load", lambda: _load(stage, pipelines), keep=False):
        return
    for case in setting.cases(stage):
        plain: list[Picture] = []
        if stage.step(f"{case.name}, {PLAIN}", _measuring(stage, pipelines[0], case, PLAIN, plain), keep=False):
            for name, cache in _caches(case).items():
                stage.step(f"{case.name}, {name}", _measuring(stage, pipelines[0], case, name, plain, cache))


def _load(stage: Stage, pipelines: list[ZImagePipeline]) -> list[Row]:
    pipelines.append(setting.load(stage))
    return []


def _caches(case: Case) -> dict[str, StepCache]:
    """First-block caching with its default, and TaylorSeer with its own, or one that acts where steps are few."""
    taylor = TaylorSeer()
    if taylor.covers(case.steps):
        taylor = TaylorSeer(cache_interval=2, warmup_steps=1)
    return {str(cache): cache for cache in (FirstBlockCache(), taylor)}


def _measuring(
    stage: Stage,
    pipeline: ZImagePipeline,
    case: Case,
    name: str,
    plain: list[Picture],
    cache: StepCache | None = None,
) -> Callable[[], list[Row]]:
    def measure() -> list[Row]:
        more = {"step_cache": "off" if cache is None else cache}
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
