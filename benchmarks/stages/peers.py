"""diffusers on the same weights, prompt and noise: eager, and with torch.compile of the repeated blocks or of all.

Its pictures are compared with ours, which the stage `pictures` has kept; the eager run is what speeds refer to.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.measure import Row, Timing, max_abs, psnr, seconds_of
from benchmarks.stages import setting
from benchmarks.stages.setting import Case, Picture
from benchmarks.stages.stage import Stage

EAGER = "diffusers"

Prepare = Callable[[diffusers.ZImagePipeline], object]
COMPETITORS: dict[str, Prepare] = {
    EAGER: lambda pipeline: None,
    "diffusers, torch.compile of the blocks": lambda pipeline: pipeline.transformer.compile_repeated_blocks(),
    "diffusers, torch.compile of transformer and VAE": lambda pipeline: (
        pipeline.transformer.compile(),
        pipeline.vae.decoder.compile(),
    ),
}


def run(stage: Stage) -> None:
    """Measure every competitor at every case; a competitor that fails at one case is still tried at the next."""
    for name, prepare in COMPETITORS.items():
        pipelines: list[diffusers.ZImagePipeline] = []
        if stage.step(f"load {name}", _loading(stage, prepare, pipelines), keep=False):
            for case in setting.cases(stage):
                stage.step(f"{case.name}, {name}", _measuring(stage, pipelines[0], case, name))
        del pipelines
        torch.compiler.reset()
        gc.collect()
        if not stage.small:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _loading(stage: Stage, prepare: Prepare, pipelines: list[diffusers.ZImagePipeline]) -> Callable[[], list[Row]]:
    def load() -> list[Row]:
        dtype = getattr(torch, setting.dtype(stage))
        pipeline = diffusers.ZImagePipeline.from_pretrained(setting.checkpoint(stage), dtype=dtype)
        pipeline.to("cpu" if stage.small else "cuda")
        pipeline.set_progress_bar_config(disable=True)
        prepare(pipeline)
        pipelines.append(pipeline)
        return []

    return load


def _measuring(stage: Stage, pipeline: diffusers.ZImagePipeline, case: Case, name: str) -> Callable[[], list[Row]]:
    return lambda: _measure(stage, pipeline, case, name)


def _measure(stage: Stage, pipeline: diffusers.ZImagePipeline, case: Case, name: str) -> list[Row]:
    """The first call compiles; its seconds beyond those of a further one are given apart."""
    pipeline.scheduler.set_shift(case.shift)
    first = seconds_of(lambda: draw(pipeline, case))
    timing = Timing.of([seconds_of(lambda: draw(pipeline, case)) for _ in range(case.repeats)])
    split, picture = _split(pipeline, case)
    row: dict[str, Any] = {"variant": name, "dtype": setting.dtype(stage), "sizes": case.sizes}
    row["reference"] = name == EAGER
    peak = setting.used_mib(stage) if stage.small else torch.cuda.max_memory_allocated() / 2**20
    whole = Row(
        case=f"{case.name}: prompt to picture",
        timing=timing,
        compile_seconds=0.0 if name == EAGER else max(first - timing.median, 0.0),
        peak_mib=peak,
        **row | _quality(stage, case, picture),
    )
    return [whole, *(Row(case=f"{case.name}: {what}", timing=Timing.of(taken), **row) for what, taken in split.items())]


def _quality(stage: Stage, case: Case, picture: Picture) -> dict[str, Any]:
    """Against our picture, if there is one."""
    file = setting.picture_file(stage, case)
    if not file.exists():
        return {"note": "no picture of ours to compare with: run the stage pictures first"}
    ours = np.load(file)
    return {"psnr_db": psnr(picture, ours), "max_abs": max_abs(picture, ours), "note": "against our picture"}


def draw(
    pipeline: diffusers.ZImagePipeline,
    case: Case,
    callback: Callable[..., Any] | None = None,
    prompt: str = setting.PROMPT,
) -> Picture:
    """Draw with diffusers; the picture is on the host, uint8 [side, side, 3]."""
    images = pipeline(
        prompt,
        height=case.side,
        width=case.side,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        latents=torch.from_numpy(case.noise).to(pipeline.device),
        output_type="np",
        callback_on_step_end=callback,
    ).images
    picture: Picture = np.round(images[0] * 255).astype(np.uint8)
    return picture


def _split(pipeline: diffusers.ZImagePipeline, case: Case) -> tuple[dict[str, list[float]], Picture]:
    """Seconds between the ends of the steps, and after the last one, waiting for the device at each."""
    ends: list[float] = []

    def now(*_: object) -> dict[str, Any]:
        setting.synchronize(pipeline.device)
        ends.append(time.perf_counter())
        return {}

    picture = draw(pipeline, case, now)
    now()
    return {"denoise": list(np.diff(ends[:-1])), "decode": [ends[-1] - ends[-2]]}, picture
