"""What samplers, guidance, passes and tiles are worth: `python -m benchmarks.quality requests [--only PART ...]`.

Pictures of the embedded model by the same noise: how near each is to where the steps lead, which is Euler's picture of
100 steps under the same guidance (of 20 where they are large, and beside tiles, which only decode), and whether it
shows what was asked for. Samplers that draw noise lead elsewhere: of those the second says more than the first, and so
it does of passes, which begin with the noise of a smaller picture, and of what goes away from a negative prompt.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import numpy.typing as npt

from benchmarks.measure import COLUMNS, RESULTS, Conditions, Row, record
from benchmarks.quality.cases import Prompt, scene_prompts
from benchmarks.quality.draws import Drawn
from benchmarks.quality.scores import Sample, Scorer, rows
from max_zimage import ZImagePipeline
from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES

PROMPTS = 32
Fields = Mapping[str, Any]

SAMPLED: Mapping[str, Fields] = {name: {"sampler": name} for name in SAMPLERS}
SHAPED: Mapping[str, Fields] = {name: {"sigma_shape": name} for name in SIGMA_SHAPES if name != "linear"}
GUIDED: Mapping[str, Fields] = {
    "no guidance": {"guidance_scale": 0.0},
    "cfg": {},
    "cfg, cfg_normalization 1": {"cfg_normalization": 1.0},
    "cfg, interval 0 to 0.5": {"guidance_interval": (0.0, 0.5)},
    "cfg, interval 0.25 to 0.75": {"guidance_interval": (0.25, 0.75)},
    "cfg, rescale 0.7": {"guidance_rescale": 0.7},
    "cfg_zero_star": {"guidance_variant": "cfg_zero_star"},
    "cfg_zero_star, zero_init": {"guidance_variant": "cfg_zero_star", "zero_init": True},
    "apg": {"guidance_variant": "apg"},
    "apg, eta 0, momentum -0.5": {"guidance_variant": "apg", "apg_eta": 0.0, "apg_momentum": -0.5},
    "no guidance, slg": {"guidance_scale": 0.0, "slg": True},
    "cfg, slg": {"slg": True},
}
"""Name -> the fields of a request, guidance 4 unless they say another."""
SIZED: Mapping[str, Fields] = {
    "one run": {},
    "progressive 0.3": {"progressive": 0.3},
    "progressive 0.5": {"progressive": 0.5},
    "passes 0.5,1.0:0.5, lanczos": {"passes": "0.5,1.0:0.5"},
    "passes 0.5,1.0:0.5, bicubic": {"passes": "0.5,1.0:0.5", "upscale": "bicubic"},
    "passes 0.75,1.0:0.5, lanczos": {"passes": "0.75,1.0:0.5"},
    "passes 0.75,1.0:0.5, bicubic": {"passes": "0.75,1.0:0.5", "upscale": "bicubic"},
}
"""The same. The model was trained with sides of 96 and 128: a half of 64 it has not seen, nor anything above 128."""
OTHER_SCENE = {"negative_prompt": "a green ring on a gray background"}
ATTENDED: Mapping[str, Fields] = {
    "no guidance": {},
    "nag_scale 3": {"nag_scale": 3.0},
    "nag_scale 5": {"nag_scale": 5.0},
    "nag_scale 5, nag_sigma_end 0.75": {"nag_scale": 5.0, "nag_sigma_end": 0.75},
    "nag_scale 3, negative prompt": {"nag_scale": 3.0, **OTHER_SCENE},
    "nag_scale 5, negative prompt": {"nag_scale": 5.0, **OTHER_SCENE},
}
"""The same, guidance 0; without a negative prompt it goes away from the empty one."""


def tiled(size: int, overlaps: Sequence[int]) -> Mapping[str, Fields]:
    """The same, in tiles of so many pixels, both ways."""
    blended = {"vae_tiling": "blend", "vae_tile_size": size}
    return {
        "whole": {},
        **{f"blend {size} / {overlap}": {**blended, "vae_tile_overlap": overlap} for overlap in overlaps},
        f"exact {size}": {"vae_tiling": "exact", "vae_tile_size": size},
    }


@dataclass(frozen=True)
class Part:
    """Rows that are drawn alike.

    Attributes:
        ways: Name -> the fields of a request.
        steps: One table for each.
        guidance: Where the fields say none.
        side: Of the pictures, in pixels.
        leads_to: Steps of the picture that all are compared with.
    """

    ways: Mapping[str, Fields]
    steps: Sequence[int]
    guidance: float
    side: int = 128
    leads_to: int = 100


PARTS = {
    "samplers": Part(SAMPLED, (4, 8, 12, 20), 2.0),
    "sigma shapes": Part(SHAPED, (8, 20), 2.0),
    "guidance": Part(GUIDED, (8, 20), 4.0),
    "sizes, 128 pixels": Part(SIZED, (8, 20), 2.0),
    "sizes, 192 pixels": Part(SIZED, (20,), 2.0, side=192, leads_to=20),
    "sizes, 256 pixels": Part(SIZED, (20,), 2.0, side=256, leads_to=20),
    "normalized attention": Part(ATTENDED, (8, 20), 0.0),
    "tiles, 128 pixels": Part(tiled(64, (16, 32)), (20,), 2.0, leads_to=20),
    "tiles, 256 pixels": Part(tiled(128, (16, 32)), (20,), 2.0, side=256, leads_to=20),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality requests", description=__doc__)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"pictures of each row; {PROMPTS} if not given")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="a part alone, the others' rows stay; may be given several times"
    )
    parser.add_argument("--untimed", action="store_true", help="leave out seconds, where other work runs beside")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="where the table goes")
    options = parser.parse_args(arguments)
    pipeline, conditions = ZImagePipeline.from_pretrained(device="cpu"), Conditions.now()
    samples: list[Sample] = []
    file, begin = options.output / "quality-requests.csv", time.perf_counter()
    for name in options.only or PARTS:
        for number, prompt in enumerate(scene_prompts(options.prompts), 1):
            samples += _measured(pipeline, name, PARTS[name], prompt)
            seconds = time.perf_counter() - begin
            print(f"{name}: prompt {number} of {options.prompts}, {seconds:.0f} s since the start", flush=True)
        measured = rows(samples, pipeline.sources.dtypes["transformer"])
        _write(file, measured, conditions, untimed=options.untimed)
    for row in measured:
        assert row.quality is not None
        assert row.timing is not None
        quality = row.quality
        psnr, ssim, right = row.psnr_db or 0.0, quality.ssim or 0.0, quality.all_right or 0.0
        print(f"| {row.case} | {row.variant} | {row.timing.median:.2f} s | {psnr:.0f} / {ssim:.3f} | {right:.0%} |")
    print(f"-> {file}")
    return 0


def _measured(pipeline: ZImagePipeline, part_name: str, part: Part, prompt: Prompt) -> list[Sample]:
    """Each way's pictures of a prompt, the ways one after the other, beside where its guidance leads."""

    @cache
    def leads_to(guided: float) -> npt.NDArray[np.uint8]:
        return _draw(pipeline, prompt, part.side, part.leads_to, {"guidance_scale": guided}).pixels

    found, scorer = [], Scorer()
    for steps in part.steps:
        for name, fields in part.ways.items():
            asked = {"guidance_scale": part.guidance, **fields}
            drawn = _draw(pipeline, prompt, part.side, steps, asked)
            expected = leads_to(asked["guidance_scale"])
            case = _case(part_name, steps)
            found.append(scorer.sample(case, name, f"{part.side}x{part.side}", prompt, drawn, expected))
    return found


def _case(part: str, steps: int) -> str:
    return f"{part}, {steps} steps"


def _write(file: Path, measured: Sequence[Row], conditions: Conditions, *, untimed: bool) -> None:
    """Write rows in the order of the parts; those of parts that were not drawn stay as they are."""
    found = {(row.case, row.variant): record(row, measured, conditions) for row in measured}
    without = ("skipped", "identical", *(("median_s", "p20_s", "p80_s", "speedup") if untimed else ()))
    for row in found.values():  # no step cache is compared, and no picture is to be another's
        row |= dict.fromkeys(without, "")
    if file.exists():
        with file.open(newline="", encoding="utf-8") as before:
            drawn = {case for case, _ in found}
            old = {(row["case"], row["variant"]): row for row in csv.DictReader(before) if row["case"] not in drawn}
        found |= old
    places = [(_case(name, steps), way) for name, part in PARTS.items() for steps in part.steps for way in part.ways]
    with file.open("w", newline="", encoding="utf-8") as written:
        writer = csv.DictWriter(written, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found[place] for place in places if place in found)


def _draw(pipeline: ZImagePipeline, prompt: Prompt, side: int, steps: int, fields: Fields) -> Drawn:
    begin = time.perf_counter()
    size: dict[str, Any] = {
        "height": side,
        "width": side,
        "num_inference_steps": steps,
        "seed": prompt.seed,
        "output_type": "np",
    }
    pixels = np.asarray(pipeline(prompt.text, **size, **fields))[0]
    return Drawn(pixels=pixels, seconds=time.perf_counter() - begin, skipped=0.0)


if __name__ == "__main__":
    raise SystemExit(main())
