"""The embedded model from prompt to picture, ours and diffusers on the same device, dtype, prompt and noise, in turn.

It is small: what is measured at 128x128 is what both spend beside the device's work, what is measured at 1024x1024 is
mostly attention. Its graphs may take longer to compile than a stage has: `max-zimage compile --keep` makes them
beforehand, for the folder `graphs` in the work folder.
"""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import torch

from benchmarks.measure import Row, interleave, max_abs, psnr
from benchmarks.stages import peers, setting
from benchmarks.stages.setting import Case
from benchmarks.stages.stage import Stage
from max_zimage import ZImagePipeline
from max_zimage.calling import EMBEDDED_MODEL

PROMPT = "a large red star on a blue background"
_SHIFT = 3.0
_SIDES = {128: 20, 512: 10, 1024: 10}
_SMALL_SIDES = {128: 2}

Pipelines = list[tuple[ZImagePipeline, diffusers.ZImagePipeline]]


def run(stage: Stage) -> None:
    """Load both, then measure every size, without guidance and with it."""
    loaded: Pipelines = []
    if not stage.step("load", lambda: _load(stage, loaded), keep=False):
        return
    for side, repeats in (_SMALL_SIDES if stage.small else _SIDES).items():
        for guidance in (0.0, 2.0):
            case = Case(model="embedded", side=side, steps=8, guidance=guidance, shift=_SHIFT, repeats=repeats)
            stage.step(case.sizes, _measuring(stage, *loaded[0], case))


def _load(stage: Stage, loaded: Pipelines) -> list[Row]:
    dtype, device = setting.dtype(stage), "cpu" if stage.small else "gpu"
    ours = ZImagePipeline.from_pretrained(device=device, dtype=dtype)
    theirs = diffusers.ZImagePipeline.from_pretrained(EMBEDDED_MODEL, dtype=getattr(torch, dtype))
    theirs.to("cpu" if stage.small else "cuda")
    theirs.set_progress_bar_config(disable=True)
    loaded.append((ours, theirs))
    return []


def _measuring(
    stage: Stage, ours: ZImagePipeline, theirs: diffusers.ZImagePipeline, case: Case
) -> Callable[[], list[Row]]:
    draws = {
        peers.EAGER: lambda: peers.draw(theirs, case, prompt=PROMPT),
        "ours": lambda: setting.draw(ours, case, prompt=PROMPT),
    }

    def measure() -> list[Row]:
        expected, pictures = draws[peers.EAGER](), {name: draw() for name, draw in draws.items()}
        return [
            Row(
                case=f"{case.name}, guidance {case.guidance:g}",
                variant=name,
                dtype=setting.dtype(stage),
                sizes=case.sizes,
                timing=timing,
                psnr_db=psnr(pictures[name], expected),
                max_abs=max_abs(pictures[name], expected),
                reference=name == peers.EAGER,
            )
            for name, timing in interleave(draws, case.repeats).items()
        ]

    return measure
