"""diffusers on the same weights, prompt and noise, in the same run: eager, then with its repeated blocks compiled.

One pipeline serves both, since loading takes longer than drawing: the blocks are compiled last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.checkpoints.shapes import TURBO_SHIFT
from benchmarks.gpu_run import cases as blocks
from benchmarks.gpu_run import checkpoint
from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.cases import BlockCase, Lengths
from benchmarks.gpu_run.drawing import PROMPT, Case, Picture, cases
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.stages.checkpoint import SECONDS
from benchmarks.gpu_run.steps import Part
from benchmarks.measure import Timing, max_abs, psnr, seconds_of

EAGER, COMPILED = "diffusers", "diffusers, repeated blocks compiled"
_REPEATS = 3


def parts(bench: Bench) -> list[Part]:
    """A block alone; the first case eager; all of them compiled."""
    first, *_ = cases(bench)
    drawn = [(first, EAGER, 30), *((case, COMPILED, 40) for case in cases(bench))]
    return [
        Part(name="block", seconds=12, measure=lambda: _block(bench)),
        *(
            Part(
                name=f"{case.name}, {name}",
                seconds=seconds,
                measure=partial(_drawn, bench, case, name),
            )
            for case, name, seconds in drawn
        ),
    ]


def _block(bench: Bench) -> Iterator[Row]:
    """With RoPE and without, as attention and elementwise operations are otherwise told apart by nothing."""
    made, tokens = blocks.block(bench).to(bench.torch_dtype), bench.shape.tokens
    case = BlockCase(bench, made, Lengths((tokens,), tokens))
    rotations = torch.polar(torch.ones_like(case.angles), case.angles)
    x, embedding = case.x, case.embedding.to(bench.torch_dtype)
    calls = {
        f"{EAGER}": lambda: made(x, None, rotations, embedding),
        f"{EAGER}, without RoPE": lambda: made(x, None, None, embedding),
    }
    for name, timing in bench.timed(calls, samples=5).items():
        yield Row(
            case=f"block, {tokens} tokens", variant=name, dtype=bench.dtype, timing=timing, gflop=bench.shape.gflop
        )


def _pipeline(bench: Bench) -> diffusers.ZImagePipeline:
    def load() -> diffusers.ZImagePipeline:
        folder = checkpoint.wait(bench.work, small=bench.small, seconds=SECONDS)
        loaded = diffusers.ZImagePipeline.from_pretrained(folder, torch_dtype=bench.torch_dtype)
        loaded.to(bench.torch_device)
        loaded.set_progress_bar_config(disable=True)
        loaded.scheduler.set_shift(TURBO_SHIFT)
        return loaded

    return bench.once("diffusers", load)


def _compiled(bench: Bench) -> diffusers.ZImagePipeline:
    """The same pipeline from here on with its blocks compiled; small ones are traced and run as they are."""

    def compile_blocks() -> bool:
        more = {"backend": "eager"} if bench.small else {}
        _pipeline(bench).transformer.compile_repeated_blocks(**more)
        return True

    bench.once("compiled", compile_blocks)
    return _pipeline(bench)


def _drawn(bench: Bench, case: Case, name: str) -> Iterator[Row]:
    """The first call compiles; its seconds beyond those of a further one are a row of their own."""
    pipeline = _compiled(bench) if name == COMPILED else _pipeline(bench)
    first = seconds_of(lambda: draw(pipeline, case))
    repeats = 1 if bench.small else _REPEATS
    timing = Timing.of([seconds_of(lambda: draw(pipeline, case)) for _ in range(repeats)])
    ends, picture = _split(bench, pipeline, case)
    more: dict[str, Any] = {"variant": name, "dtype": bench.dtype, "sizes": case.sizes}
    peak = bench.used_mib() if bench.small else torch.cuda.max_memory_allocated() / 2**20
    yield Row(case=f"{case.name}: prompt to picture", timing=timing, peak_mib=peak, **more)
    yield Row(case=f"{case.name}: first call beyond that", value=first - timing.median, note="s", **more)
    yield Row(case=f"{case.name}: denoise", timing=Timing.of(list(np.diff(ends[:-1]))), **more)
    yield Row(case=f"{case.name}: decode", timing=Timing.of([ends[-1] - ends[-2]]), **more)
    yield _beside(bench, case, timing.median, picture, more)


def _beside(bench: Bench, case: Case, theirs: float, picture: Picture, more: dict[str, Any]) -> Row:
    """Our picture and our seconds of the same run, read from what the step `pictures` has left."""
    ours = bench.seconds_before(f"{case.name}: prompt to picture", "ours")
    if ours is None or not case.file(bench).exists():
        note = "nothing of ours to compare with: run the step pictures before"
        return Row(case=f"{case.name}: ours beside", state="skipped", note=note, **more)
    drawn = np.load(case.file(bench))
    return Row(
        case=f"{case.name}: ours beside",
        speedup=theirs / ours,
        psnr_db=psnr(picture, drawn),
        max_abs=max_abs(picture, drawn),
        note=f"ours takes {ours:.4g} s; the weights are random, and so are the pictures",
        **more,
    )


def draw(pipeline: diffusers.ZImagePipeline, case: Case, callback: Any = None) -> Picture:
    """Draw with diffusers; the picture is on the host, uint8 [side, side, 3]."""
    images = pipeline(
        PROMPT,
        height=case.side,
        width=case.side,
        num_inference_steps=case.steps,
        guidance_scale=0.0,
        latents=torch.from_numpy(case.noise).to(pipeline.device),
        output_type="np",
        callback_on_step_end=callback,
    ).images
    picture: Picture = np.round(images[0] * 255).astype(np.uint8)
    return picture


def _split(bench: Bench, pipeline: diffusers.ZImagePipeline, case: Case) -> tuple[list[float], Picture]:
    """When each step and the whole picture was done, waiting for the device at each."""
    ends: list[float] = []

    def now(*_: object) -> dict[str, Any]:
        bench.synchronize()
        ends.append(time.perf_counter())
        return {}

    picture = draw(pipeline, case, now)
    now()
    return ends, picture
