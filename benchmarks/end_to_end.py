"""Prompt to picture with the embedded model: ours, diffusers, and diffusers with torch.compile, on the same noise.

Quality stands beside speed: every picture is compared with that of diffusers without torch.compile. Scenes of few steps
are those of the distilled checkpoints, scenes of 50 steps those of the base model; there step caches take part. MAX's
own pipeline of this model has its row too: why it draws nothing here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.drawing import (
    CACHES,
    EAGER,
    EAGER_BFLOAT16,
    OURS,
    OURS_BFLOAT16,
    Draw,
    Scene,
    bound,
    compiled_diffusers,
    diffusers_draw,
    load_diffusers,
    our_draw,
    our_pipelines,
)
from benchmarks.measure import ROOT, Row, Timing, interleave, max_abs, psnr
from max_zimage import ZImagePipeline, embedded

_BUILT_IN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))
from max.driver import DeviceSpec
from max.pipelines import PIPELINE_REGISTRY, PipelineArgs
from max.pipelines.lib.config import PipelineConfig
from max.pipelines.modeling.types import PipelineTask
arguments = dict(model_path=sys.argv[1], device_specs=[DeviceSpec.cpu()], quantization_encoding="float32")
config = PipelineConfig.from_args(PipelineArgs.from_flat_kwargs(**arguments))
PIPELINE_REGISTRY.retrieve_factory(config, PipelineTask.PIXEL_GENERATION)
"""
"""What `max serve` does before it compiles anything. Not further: MAX's attention for this model is one for GPUs alone,
and on a CPU its compiler takes minutes and more than ten gigabytes to say so."""

_BUILT_IN_SECONDS, _BUILT_IN_BYTES = 120, 8 * 2**30


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is drawn.

    Attributes:
        scenes: Also split into stages.
        cached: Scenes in which step caches take part.
        calls: At most so many timed calls of each competitor in a scene of `cached`, by its side.
        compile_diffusers: Whether torch.compile takes part.
        more: Whether ours without its kernels and in bfloat16 take part.
    """

    scenes: tuple[Scene, ...]
    cached: tuple[Scene, ...]
    calls: Mapping[int, int]
    compile_diffusers: bool
    more: bool


FULL = Setting(
    scenes=(Scene(side=128, steps=8, guidance=0.0), Scene(side=128, steps=8, guidance=2.0)),
    cached=(Scene(side=128, steps=50, guidance=4.0), Scene(side=256, steps=50, guidance=4.0)),
    calls={128: 10, 256: 5},
    compile_diffusers=True,
    more=True,
)
QUICK = Setting(
    scenes=(Scene(side=96, steps=2, guidance=2.0),),
    cached=(Scene(side=96, steps=12, guidance=4.0),),
    calls={96: 1},
    compile_diffusers=False,
    more=False,
)


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """One way to draw, ready to be timed."""

    draw: Draw
    compile_seconds: float | None


def rows(setting: Setting, repeats: int) -> list[Row]:
    """Measure every competitor in every scene, and where the time goes in those of few steps."""
    pipelines = our_pipelines(more=setting.more)
    competitors, measured = _competitors(setting, pipelines)
    for scene in setting.scenes:
        measured += _pictures(scene, competitors, repeats)
        measured += _stages({name: item.draw for name, item in competitors.items()}, scene, repeats)
    caches = {
        f"{OURS}, {cache}": Competitor(draw=our_draw(pipelines[OURS], cache), compile_seconds=None) for cache in CACHES
    }
    for scene in setting.cached:
        measured += _pictures(scene, {**competitors, **caches}, min(repeats, setting.calls[scene.side]))
    return [*measured, _built_in()]


def _competitors(setting: Setting, pipelines: Mapping[str, ZImagePipeline]) -> tuple[dict[str, Competitor], list[Row]]:
    """Everything that computes every step here, and rows that say what cannot."""
    found = {EAGER: Competitor(draw=diffusers_draw(), compile_seconds=0.0)}
    if OURS_BFLOAT16 in pipelines:
        found[EAGER_BFLOAT16] = Competitor(draw=diffusers_draw(load_diffusers(torch.bfloat16)), compile_seconds=0.0)
    found |= {name: Competitor(draw=our_draw(each), compile_seconds=None) for name, each in pipelines.items()}
    if not setting.compile_diffusers:
        return found, []
    compiled = compiled_diffusers([*setting.scenes, *setting.cached])
    if compiled.draw is not None:
        found[compiled.name] = Competitor(draw=compiled.draw, compile_seconds=compiled.seconds)
    return found, [
        Row(case="torch.compile", variant=name, dtype="float32", sizes="", note=note)
        for name, note in compiled.failures
    ]


def _pictures(scene: Scene, competitors: Mapping[str, Competitor], repeats: int) -> list[Row]:
    calls = {name: bound(competitor.draw, scene) for name, competitor in competitors.items()}
    pictures = {name: call() for name, call in calls.items()}
    return [
        Row(
            case=f"prompt to picture, {scene.sizes}",
            variant=name,
            dtype=_dtype(name),
            sizes=scene.sizes,
            timing=timing,
            compile_seconds=competitors[name].compile_seconds,
            psnr_db=psnr(pictures[name], pictures[EAGER]),
            max_abs=max_abs(pictures[name], pictures[EAGER]),
            reference=name == EAGER,
        )
        for name, timing in interleave(calls, repeats, warmups=0).items()
    ]


def _stages(draws: Mapping[str, Draw], scene: Scene, repeats: int) -> list[Row]:
    """Split each call by the times at which its steps end, seen through the callback."""
    seconds: dict[tuple[str, str], list[float]] = {}

    def run(name: str, draw: Draw) -> None:
        ends = [time.perf_counter()]

        def note(*_: object) -> dict[str, Any]:
            ends.append(time.perf_counter())
            return {}

        draw(scene, note)
        ends.append(time.perf_counter())
        step = float(np.median(np.diff(ends[1:-1])))
        stages = {"to the first step's end": ends[1] - ends[0], "a further step": step, "VAE": ends[-1] - ends[-2]}
        for stage, taken in stages.items():
            seconds.setdefault((stage, name), []).append(taken)

    for _ in range(repeats):
        for name, draw in draws.items():
            run(name, draw)
    return [
        Row(
            case=f"{stage}, {scene.sizes}",
            variant=name,
            dtype=_dtype(name),
            sizes=scene.sizes,
            timing=Timing.of(taken),
            reference=name == EAGER,
        )
        for (stage, name), taken in sorted(seconds.items())
    ]


def _dtype(name: str) -> str:
    return "bfloat16" if name in (EAGER_BFLOAT16, OURS_BFLOAT16) else "float32"


def _built_in() -> Row:
    """MAX's own Z-Image pipeline, as far as it comes without a GPU."""
    command = [sys.executable, "-c", _BUILT_IN, str(embedded.PATH), str(_BUILT_IN_BYTES)]
    said = last_words(command, _BUILT_IN_SECONDS)
    note = "configured, and not compiled: its attention is for GPUs alone" if said is None else f"does not run: {said}"
    return Row(
        case="MAX's built-in pipeline", variant="MAX, architecture ZImagePipeline", dtype="float32", sizes="", note=note
    )


def last_words(command: Sequence[str], seconds: float) -> str | None:
    """Run a process; None if it ends well, or else the last line it wrote to its standard error."""
    try:
        done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:g} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return (lines[-1] if lines else f"ended with status {done.returncode}")[:200]
