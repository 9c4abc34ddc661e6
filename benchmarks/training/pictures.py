"""The training set: scenes painted once, by all processes together, kept as one array per picture size."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.training.scenes import random_scene

SIZES = {(128, 128): 14, (96, 96): 2, (96, 128): 2, (128, 96): 2}
"""Height and width, and how many of twenty pictures have them. All but the first need image padding to 32 tokens."""

PAIRS = 0.5
"""Share of pictures with two objects."""

_CHUNK = 100
_SEED = 1000


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of one size.

    Attributes:
        pixels: uint8 [count, height, width, 3], mapped from a file.
        captions: One each.
    """

    pixels: npt.NDArray[np.uint8]
    captions: list[str]


def paint(folder: Path, count: int, workers: int) -> None:
    """Paint `count` pictures of all sizes into a folder, the same ones whatever the number of workers."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        for number, (size, share) in enumerate(SIZES.items()):
            chunks = max(1, round(count * share / sum(SIZES.values()) / _CHUNK))
            seeds = [(_SEED, number, chunk) for chunk in range(chunks)]
            painted = pool.map(_chunk, seeds, [size] * chunks)
            _write(folder, size, chunks * _CHUNK, painted)
            print(f"{chunks * _CHUNK} pictures of {_name(size)}", flush=True)


def open_pictures(folder: Path) -> dict[tuple[int, int], Pictures]:
    """What `paint` has left, by height and width."""
    return {
        size: Pictures(
            pixels=np.load(folder / f"{_name(size)}.npy", mmap_mode="r"),
            captions=json.loads((folder / f"{_name(size)}.json").read_text(encoding="utf-8")),
        )
        for size in SIZES
    }


def fingerprint() -> int:
    """A number that changes with the scenes, their captions and how they are painted."""
    pixels, captions = _chunk((_SEED,), (96, 96), 20)
    return zlib.crc32("\n".join(captions).encode(), zlib.crc32(pixels.tobytes()))


def _chunk(
    seed: tuple[int, ...], size: tuple[int, int], count: int = _CHUNK
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    chance = np.random.default_rng(seed)
    scenes = [random_scene(chance, 2 if chance.random() < PAIRS else 1, unseen=False) for _ in range(count)]
    return np.stack([scene.painted(*size) for scene in scenes]), [scene.caption for scene in scenes]


def _write(
    folder: Path, size: tuple[int, int], count: int, painted: Iterator[tuple[npt.NDArray[np.uint8], list[str]]]
) -> None:
    pixels = np.lib.format.open_memmap(folder / f"{_name(size)}.npy", "w+", np.uint8, (count, *size, 3))
    captions: list[str] = []
    for some, texts in painted:
        pixels[len(captions) : len(captions) + len(texts)] = some
        captions += texts
    pixels.flush()
    (folder / f"{_name(size)}.json").write_text(json.dumps(captions), encoding="utf-8")


def _name(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))
