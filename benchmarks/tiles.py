"""The embedded model's decoder in tiles: how far its pictures are from those of the whole decoder, and what that costs.

Latents are those of pictures that the model draws. Memory is the estimate that requests are refused by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Row, interleave, max_abs
from max_zimage import ZImagePipeline
from max_zimage.device.devices import upload
from max_zimage.images.tiles import WHOLE, Tiling
from max_zimage.pipeline.estimate import decode_bytes, map_bytes
from max_zimage.pipeline.stages import decoded

_PROMPT = "a red star on a blue background"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sides of square pictures, and the tiles that are tried."""

    sides: tuple[int, ...]
    tilings: tuple[Tiling, ...]


FULL = Sizes(
    sides=(512, 1024),
    tilings=(
        Tiling("blend", 128, 16),
        Tiling("blend", 128, 32),
        Tiling("blend", 256, 32),
        Tiling("blend", 256, 64),
        Tiling("blend", 512, 64),
        Tiling("exact", 128),
        Tiling("exact", 256),
        Tiling("exact", 512),
    ),
)
QUICK = Sizes(sides=(96,), tilings=(Tiling("blend", 64, 16), Tiling("exact", 64)))


def rows(sizes: Sizes, repeats: int) -> list[Row]:
    """Measure."""
    pipeline = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
    return [row for side in sizes.sides for row in _rows(pipeline, side, sizes.tilings, repeats)]


def _rows(pipeline: ZImagePipeline, side: int, tilings: Sequence[Tiling], repeats: int) -> list[Row]:
    asked: dict[str, Any] = {"height": side, "width": side, "num_inference_steps": 4, "guidance_scale": 2.0}
    latents = np.asarray(pipeline(_PROMPT, seed=1, output_type="latent", **asked))
    _, channels, height, width = latents.shape
    squares = latents.reshape(1, channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 3, 5, 1)
    tokens = upload(squares.reshape(1, height * width // 4, 4 * channels), pipeline.device)
    kept: dict[str, npt.NDArray[np.uint8]] = {}

    def call(name: str, tiling: Tiling) -> Callable[[], None]:
        def decode() -> None:
            kept[name] = decoded(pipeline.vae, tokens, height // 2, width // 2, tiling)[0]

        return decode

    ways = {"whole": WHOLE, **{_name(each): each for each in tilings if each.is_needed(side, side)}}
    timings = interleave({name: call(name, tiling) for name, tiling in ways.items()}, repeats)
    return [
        Row(
            case=f"decode {side}x{side}",
            variant=name,
            dtype="float32",
            sizes=f"{side}x{side}",
            timing=timings[name],
            peak_mib=_memory(pipeline, side, tiling) / 2**20,
            psnr_db=_psnr(kept[name], kept["whole"]),
            max_abs=max_abs(kept[name], kept["whole"]),
            reference=name == "whole",
            note=f"{np.mean(kept[name] != kept['whole']):.2g} of the bytes differ",
        )
        for name, tiling in ways.items()
    ]


def _name(tiling: Tiling) -> str:
    return f"blend {tiling.size} / {tiling.overlap}" if tiling.kind == "blend" else f"exact {tiling.size}"


def _memory(pipeline: ZImagePipeline, side: int, tiling: Tiling) -> int:
    spec = pipeline.vae.spec
    tile = decode_bytes(spec, pictures=1, height=side, width=side, dtype="float32", tiling=tiling)
    return tile + map_bytes(spec, side, side, "float32", tiling)


def _psnr(ours: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> float:
    error = np.mean(np.square(ours.astype(np.float64) - expected))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
