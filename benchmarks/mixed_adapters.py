"""Four pictures under four adapters: together, each row with low-rank products of its own, and one after the other.

The embedded model on a CPU. Adapters change all matrices of the noise refiner and the main layers. A call is from
prompts to latents; one after the other, every one begins with its adapter added to the weights and the one before taken
away. What is compiled is compiled before. Steps alone are the denoising, with text features and adapters there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.adapters import write_adapter
from benchmarks.additions import Sizes as PictureSizes
from benchmarks.additions import inputs_of
from benchmarks.measure import Row, interleave
from max_zimage import ZImagePipeline
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.mixed_adapters import mixed_of

PROMPTS = ["a red star", "a blue ring on green", "a green square", "a small white circle on black"]
ONE_BY_ONE, TOGETHER = "one by one", "together"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sides of the pictures, their steps, and the adapters' ranks."""

    sides: tuple[int, ...]
    steps: int
    ranks: tuple[int, ...]


FULL = Sizes(sides=(128, 256), steps=8, ranks=(8, 16, 32))
QUICK = Sizes(sides=(64,), steps=2, ranks=(8,))


def rows(sizes: Sizes, repeats: int) -> list[Row]:
    """Measure."""
    pipeline = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        made = {rank: _adapters(Path(folder), pipeline, rank) for rank in sizes.ranks}
        return [
            row
            for side in sizes.sides
            for row in (
                *_calls(pipeline, side, sizes.steps, made, repeats),
                *_steps(pipeline, side, sizes.steps, made, repeats),
            )
        ]


def _adapters(folder: Path, pipeline: ZImagePipeline, rank: int) -> list[Path]:
    spec = pipeline.transformer.spec
    places = tuple(f"layers.{index}." for index in range(spec.num_layers))
    places += tuple(f"noise_refiner.{index}." for index in range(spec.num_refiner_layers))
    files = [folder / f"{rank}-{index}.safetensors" for index in range(len(PROMPTS))]
    for file in files:
        write_adapter(file, pipeline.sources.specs, rank, places)
    return files


def _calls(pipeline: ZImagePipeline, side: int, steps: int, made: dict[int, list[Path]], repeats: int) -> list[Row]:
    shape: dict[str, Any] = {"height": side, "width": side, "num_inference_steps": steps, "seed": 1}
    shape |= {"guidance_scale": 0.0, "output_type": "latent"}

    def one_by_one(files: list[Path] | None) -> None:
        for index, prompt in enumerate(PROMPTS):
            pipeline(prompt, **shape, loras=[] if files is None else [files[index]])

    def together(files: list[Path] | None) -> None:
        pipeline(PROMPTS, **shape, loras=[] if files is None else [[file] for file in files])

    found = []
    for rank, files in [(0, None), *made.items()]:
        calls: dict[str, Callable[[], object]] = {
            ONE_BY_ONE: partial(one_by_one, files),
            TOGETHER: partial(together, files),
        }
        case = f"{side}x{side}, {f'rank {rank}' if rank else 'no adapters'}"
        for variant, timing in interleave(calls, repeats).items():
            found.append(
                Row(
                    case=case,
                    variant=variant,
                    dtype="float32",
                    sizes=f"4 pictures, {steps} steps",
                    timing=timing,
                    reference=variant == ONE_BY_ONE,
                )
            )
    return found


def _steps(pipeline: ZImagePipeline, side: int, steps: int, made: dict[int, list[Path]], repeats: int) -> list[Row]:
    """The denoising alone, of four rows: in the plain graph, and in the one with low-rank parts."""
    plain = inputs_of(pipeline, PictureSizes(side=side, steps=steps), {"prompt": PROMPTS, "guidance_scale": 0.0})
    specs, transformer = pipeline.sources.specs, pipeline.transformer
    given: dict[str, ZImageModelInputs] = {"plain": plain}
    for rank, files in made.items():
        sets = [pipeline.loras_by_prompt([[file]]) or () for file in files]
        given[f"rank {rank}"] = replace(plain, mixed=mixed_of([each[0] for each in sets], specs, transformer))
    given["low-rank parts of zeros"] = replace(plain, mixed=mixed_of([()] * len(PROMPTS), specs, transformer))

    def denoise(inputs: ZImageModelInputs) -> None:
        pipeline.denoising(inputs).run()

    calls: dict[str, Callable[[], object]] = {name: partial(denoise, inputs) for name, inputs in given.items()}
    return [
        Row(
            case=f"{side}x{side}, steps of four together",
            variant=name,
            dtype="float32",
            sizes=f"4 pictures, {steps} steps",
            timing=timing,
            reference=name == "plain",
        )
        for name, timing in interleave(calls, repeats).items()
    ]
