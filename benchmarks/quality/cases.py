"""What the quality table measures: prompts, settings of the step caches, and the numbers of steps they are held to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.step_cache import FirstBlockCache, StepCache, TaylorSeer
from tests.references.scenes import COLORS, SHAPES, recognize

THRESHOLDS = (0.02, 0.04, 0.06, 0.1, 0.15, 0.2)
LAYERS_THRESHOLDS = (0.06, 0.15)
WARM_THRESHOLDS = (0.1, 0.2)
INTERVALS = (2, 3, 4, 5, 8)
ORDERS = (1, 2)

_STRIDE = 103
"""Prime to the number of combinations, so that every colour, shape and ground comes up early and about as often."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One picture to draw.

    Attributes:
        text: What is asked for.
        seed: Of the noise.
        scene: Colour, shape and ground of the embedded model's scenes; None where nobody can check it.
    """

    text: str
    seed: int
    scene: tuple[str, str, str] | None = None

    def shown_by(self, pixels: npt.NDArray[np.uint8]) -> tuple[bool, bool, bool] | None:
        """Whether colour, shape and ground of a picture, uint8 [height, width, 3], are right."""
        if self.scene is None:
            return None
        color, shape, ground = (seen == asked for seen, asked in zip(recognize(pixels), self.scene, strict=True))
        return color, shape, ground


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is the same for everything that is compared.

    Attributes:
        steps: Denoising steps.
        guidance: Guidance scale.
        height: Pixels.
        width: Pixels.
        caches: The engine's step caches to measure.
        warmup: Steps that the caches of other people's code always compute.
    """

    steps: int
    guidance: float
    height: int
    width: int
    caches: tuple[StepCache, ...]
    warmup: int

    @classmethod
    def of(cls, steps: int, guidance: float, height: int, width: int) -> Case:
        """With all settings that make sense at so many steps."""
        caches, warmup = grid(steps), warmup_of(steps)
        return cls(steps=steps, guidance=guidance, height=height, width=width, caches=caches, warmup=warmup)

    def quick(self) -> Case:
        """With a few settings: nothing left out, a little, more; one of each method."""
        few = tuple(FirstBlockCache(threshold=threshold) for threshold in (0, 0.1, 0.2))
        return replace(self, caches=(*few, TaylorSeer(cache_interval=3, warmup_steps=self.warmup)))

    @property
    def name(self) -> str:
        """As a table has it."""
        return f"{self.steps} steps, guidance {self.guidance:g}"

    @property
    def sizes(self) -> str:
        """As a table has it."""
        return f"{self.height}x{self.width}"


def warmup_of(steps: int) -> int:
    """As large a part of the steps as MAX's 9 of 50."""
    return max(1, round(steps * TaylorSeer.warmup_steps / 50))


def grid(steps: int) -> tuple[StepCache, ...]:
    """Settings of both methods, their defaults among them, without those that leave out nothing at so many steps."""
    warmup = warmup_of(steps)
    settings: list[StepCache] = [
        *(FirstBlockCache(threshold=threshold) for threshold in THRESHOLDS),
        *(FirstBlockCache(threshold=threshold, warmup_steps=warmup) for threshold in WARM_THRESHOLDS),
        *(FirstBlockCache(threshold=threshold, block="layers") for threshold in LAYERS_THRESHOLDS),
        FirstBlockCache(),
        *(
            TaylorSeer(cache_interval=interval, warmup_steps=warmup, max_order=order)
            for order, interval in product(ORDERS, INTERVALS)
        ),
        TaylorSeer(),
    ]
    return tuple(cache for cache in dict.fromkeys(settings) if not cache.covers(steps))


def scene_prompts(count: int) -> list[Prompt]:
    """Prompts for one object each, spread over all colours, shapes and grounds; always the same."""
    scenes = [scene for scene in product(COLORS, SHAPES, COLORS) if scene[0] != scene[2]]
    chosen = [scenes[index * _STRIDE % len(scenes)] for index in range(count)]
    return [Prompt(text=_caption(*scene), seed=seed, scene=scene) for seed, scene in enumerate(chosen)]


def prompts_of_file(path: Path) -> list[Prompt]:
    """One prompt a line; empty lines do not count.

    Raises:
        ValueError: If there is no such file or no prompt in it.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts must name a text file of one prompt a line, got {path}: {error}") from error
    texts = [line for line in lines if line]
    if not texts:
        raise ValueError(f"--prompts must name a text file of one prompt a line, got {path}, which holds none")
    return [Prompt(text=text, seed=seed) for seed, text in enumerate(texts)]


def _caption(color: str, shape: str, ground: str) -> str:
    first, second = (f"an {word}" if word[0] in "aeio" else f"a {word}" for word in (color, ground))
    return f"{first} {shape} on {second} background"
