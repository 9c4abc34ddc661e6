"""Prompt to picture with the embedded model: ours, diffusers, and diffusers with torch.compile, on the same noise.

Quality stands beside speed: every picture is compared with that of diffusers without torch.compile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.measure import Row, Timing, first_line, interleave, max_abs, psnr, seconds_of
from max_zimage import ZImagePipeline
from max_zimage.calling import EMBEDDED_MODEL
from max_zimage.noise import initial_noise

PROMPT = "a red star on a blue background"
EAGER = "diffusers"

Draw = Callable[..., np.ndarray]
"""draw(guidance, callback=None) -> uint8 [height, width, 3]."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is drawn."""

    side: int
    steps: int
    guidances: tuple[float, ...]
    compile_diffusers: bool


FULL = Setting(side=128, steps=8, guidances=(0.0, 2.0), compile_diffusers=True)
QUICK = Setting(side=96, steps=2, guidances=(2.0,), compile_diffusers=False)


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """One way to draw, ready to be timed."""

    draw: Draw
    compile_seconds: float


def rows(setting: Setting, repeats: int) -> list[Row]:
    """Measure every competitor at every guidance, then where the time goes."""
    competitors, failures = _competitors(setting)
    measured = [*failures]
    for guidance in setting.guidances:
        calls = {name: _bound(competitor.draw, guidance) for name, competitor in competitors.items()}
        pictures = {name: call() for name, call in calls.items()}
        for name, timing in interleave(calls, repeats).items():
            measured.append(
                Row(
                    case=f"prompt to picture, guidance {guidance:g}",
                    variant=name,
                    dtype="float32",
                    sizes=_sizes(setting),
                    timing=timing,
                    compile_seconds=competitors[name].compile_seconds,
                    psnr_db=psnr(pictures[name], pictures[EAGER]),
                    max_abs=max_abs(pictures[name], pictures[EAGER]),
                    reference=name == EAGER,
                )
            )
        measured += _stages({name: item.draw for name, item in competitors.items()}, guidance, setting, repeats)
    return measured


def _competitors(setting: Setting) -> tuple[dict[str, Competitor], list[Row]]:
    """Everything that can draw here, and rows that say what cannot."""
    noise = initial_noise(1, 1, 16, setting.side, setting.side)
    found = {EAGER: Competitor(draw=_diffusers_draw(_diffusers(), setting, noise), compile_seconds=0.0)}
    begin = time.perf_counter()
    pipeline = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
    found["ours"] = Competitor(draw=_our_draw(pipeline, setting, noise), compile_seconds=time.perf_counter() - begin)
    failures: list[Row] = []
    parts_in_turn = (("transformer", "VAE"), ("transformer",)) if setting.compile_diffusers else ()
    for parts in parts_in_turn:
        name = f"diffusers, torch.compile of {' and '.join(parts)}"
        torch.compiler.reset()
        compiled = _diffusers()
        compiled.transformer.compile()
        if "VAE" in parts:
            compiled.vae.decoder.compile()
        draw = _diffusers_draw(compiled, setting, noise)
        try:
            seconds = sum(seconds_of(_bound(draw, guidance)) for guidance in setting.guidances)
        except Exception as error:
            note = f"does not run: {first_line(error)}"
            failures.append(Row(case="torch.compile", variant=name, dtype="float32", sizes=_sizes(setting), note=note))
            continue
        found[name] = Competitor(draw=draw, compile_seconds=seconds)
        break
    return found, failures


def _stages(draws: Mapping[str, Draw], guidance: float, setting: Setting, repeats: int) -> list[Row]:
    """Split each call by the times at which its steps end, seen through the callback."""
    seconds: dict[tuple[str, str], list[float]] = {}

    def run(name: str, draw: Draw) -> None:
        ends = [time.perf_counter()]
        draw(guidance, lambda *_: ends.append(time.perf_counter()) or {})
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
            case=f"{stage}, guidance {guidance:g}",
            variant=name,
            dtype="float32",
            sizes=_sizes(setting),
            timing=Timing.of(taken),
            reference=name == EAGER,
        )
        for (stage, name), taken in sorted(seconds.items())
    ]


def _diffusers() -> diffusers.ZImagePipeline:
    pipeline = diffusers.ZImagePipeline.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _diffusers_draw(pipeline: diffusers.ZImagePipeline, setting: Setting, noise: np.ndarray) -> Draw:
    def draw(guidance: float, callback: Callable[..., Any] | None = None) -> np.ndarray:
        arguments = _arguments(setting, guidance, callback)
        return np.asarray(pipeline(PROMPT, latents=torch.from_numpy(noise.copy()), **arguments).images[0])

    return draw


def _our_draw(pipeline: ZImagePipeline, setting: Setting, noise: np.ndarray) -> Draw:
    def draw(guidance: float, callback: Callable[..., Any] | None = None) -> np.ndarray:
        return np.asarray(pipeline(PROMPT, latents=noise, **_arguments(setting, guidance, callback))[0])

    return draw


def _arguments(setting: Setting, guidance: float, callback: Callable[..., Any] | None) -> dict[str, Any]:
    """The arguments that both pipelines spell alike."""
    return {
        "height": setting.side,
        "width": setting.side,
        "num_inference_steps": setting.steps,
        "guidance_scale": guidance,
        "callback_on_step_end": callback,
    }


def _bound(draw: Draw, guidance: float) -> Callable[[], np.ndarray]:
    return lambda: draw(guidance)


def _sizes(setting: Setting) -> str:
    return f"{setting.side}x{setting.side}, {setting.steps} steps"
