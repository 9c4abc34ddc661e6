"""Step caches a request can have, how they are written down, and which steps they compute.

    first_block:threshold=0.06,warmup_steps=0,block=noise_refiner
    taylorseer:cache_interval=5,warmup_steps=9,max_order=1

Reference: MAX pipelines/diffusion/config.py and taylorseer.py for names and defaults; diffusers
hooks/first_block_cache.py and taylorseer_cache.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt

from max_zimage.graphs.dims import FirstBlock

if TYPE_CHECKING:
    from max.pipelines.diffusion.config import DenoisingCacheConfig

DEFAULT_THRESHOLD = 0.06
"""As in MAX's Z-Image pipeline."""

_MOST = 1_000_000  # steps; far more than a request can have

OFF = "off"
"""How no cache at all is written, where a checkpoint or a server would use one otherwise."""


@dataclass(frozen=True, kw_only=True)
class FirstBlockCache:
    """Leave out the transformer's other blocks where its first one says nothing new; decided in every step anew.

    Attributes:
        threshold: How much the first block's change may differ from that of the last full step, as a share of it, at
            least 0. At 0 every step is computed.
        warmup_steps: Steps at the beginning that are always computed.
        block: "noise_refiner", the first block that sees the latents, or "layers", the first that sees the prompt too:
            dearer to ask, and what diffusers and MAX do.

    Raises:
        ValueError: If a value is out of range.
    """

    threshold: float = DEFAULT_THRESHOLD
    warmup_steps: int = 0
    block: FirstBlock = "noise_refiner"

    def __post_init__(self) -> None:
        usual = f"got {self.threshold!r}; usual are 0.02 to 0.2"
        if not (_is_number(self.threshold) and math.isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f"threshold must be a finite number of at least 0, {usual}")
        # As the graph will take it: what becomes 0 there would leave nothing out, in silence.
        low, high = (float(end) for end in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
        if self.threshold and not low <= self.threshold <= high:
            raise ValueError(f"threshold must be 0, or from {low:.3g} to {high:.3g} in float32, {usual}")
        _check_count("warmup_steps", self.warmup_steps, 0)
        if self.block not in get_args(FirstBlock):
            raise ValueError(f"block must be {' or '.join(get_args(FirstBlock))}, got {self.block!r}")

    def __str__(self) -> str:
        """As `parse_step_cache` reads it."""
        return _written("first_block", self)

    def covers(self, steps: int) -> bool:
        """Whether the warm-up, or the first step alone, takes all steps."""
        return max(self.warmup_steps, 1) >= steps

    def thresholds(self, steps: int) -> npt.NDArray[np.float32]:
        """The threshold of every step, float32 [steps]; 0 computes."""
        return np.where(np.arange(steps) < self.warmup_steps, 0, self.threshold).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class TaylorSeer:
    """Extrapolate the prediction in most steps, by a schedule. Defaults are those of MAX.

    Attributes:
        cache_interval: Every so many steps one is computed, at least 1. At 1 every step is.
        warmup_steps: Steps at the beginning that are always computed, at least 1.
        max_order: Of the expansion, 1 or 2.

    Raises:
        ValueError: If a value is out of range.
    """

    cache_interval: int = 5
    warmup_steps: int = 9
    max_order: int = 1

    def __post_init__(self) -> None:
        _check_count("cache_interval", self.cache_interval, 1)
        _check_count("warmup_steps", self.warmup_steps, 1)
        if not _is_whole(self.max_order) or self.max_order not in (1, 2):
            raise ValueError(f"max_order must be 1 or 2, got {self.max_order!r}")

    def __str__(self) -> str:
        """As `parse_step_cache` reads it."""
        return _written("taylorseer", self)

    def covers(self, steps: int) -> bool:
        """Whether the warm-up takes so many steps that none of the others is left out."""
        return self.cache_interval > 1 and bool(self.computes(steps).all())

    def computes(self, steps: int) -> npt.NDArray[np.bool_]:
        """Which steps run the transformer, bool [steps]: those of the warm-up, then one of every interval."""
        index = np.arange(steps)
        due = (index - self.warmup_steps - 1) % self.cache_interval == 0
        return np.asarray((index < self.warmup_steps) | due)

    def coefficients(self, steps: int) -> npt.NDArray[np.float32]:
        """What the first and second differences count in every step, float32 [steps, 2].

        An order takes part once enough steps have been computed to know its difference; in a computed step none does.
        """
        table = np.zeros((steps, 2), np.float32)
        known, last = 0, 0
        for index, computed in enumerate(self.computes(steps)):
            if computed:
                known, last = known + 1, index
                continue
            gap = float(index - last)
            table[index] = [order <= min(self.max_order, known - 1) and gap**order / order for order in (1, 2)]
        return table

    def gaps(self, steps: int) -> npt.NDArray[np.float32]:
        """Steps since the computed step before, float32 [steps]; 1 where there was none."""
        computed = np.flatnonzero(self.computes(steps))
        before = np.searchsorted(computed, np.arange(steps)) - 1
        return np.where(before < 0, 1, np.arange(steps) - computed[np.maximum(before, 0)]).astype(np.float32)


StepCache = FirstBlockCache | TaylorSeer

METHODS: dict[str, type[FirstBlockCache] | type[TaylorSeer]] = {
    "first_block": FirstBlockCache,
    "taylorseer": TaylorSeer,
}
"""All step caches there are, by name."""


def parse_step_cache(text: str) -> StepCache | None:
    """Read a step cache: "off", or METHOD:NAME=VALUE,... with a default for each value that is left out.

    Raises:
        ValueError: If there is no such method or name, or a value is none.
    """
    method, _, rest = text.strip().partition(":")
    if method == OFF and not rest:
        return None
    if method not in METHODS:
        raise ValueError(
            f"a step cache is {OFF}, {' or '.join(METHODS)}, with NAME=VALUE,... behind a colon, got {text[:80]!r}"
        )
    kind = METHODS[method]
    types = {field.name: str(field.type) for field in fields(kind)}
    values: dict[str, object] = {}
    for item in filter(None, rest.split(",")):
        name, equals, value = item.partition("=")
        name = name.strip()
        if name not in types or not equals or name in values:
            raise ValueError(f"{method} takes {', '.join(types)}, each once as NAME=VALUE, got {item[:40]!r}")
        values[name] = _value(name, value.strip(), types[name])
    make: type = kind
    cache: StepCache = make(**values)
    return cache


def format_step_cache(cache: StepCache | None) -> str:
    """As `parse_step_cache` reads it."""
    return OFF if cache is None else str(cache)


def configured(config: DenoisingCacheConfig, threshold: float = DEFAULT_THRESHOLD) -> StepCache | None:
    """What MAX's flags ask for; the threshold has none.

    Args:
        config: `--first-block-caching`, `--taylorseer` and what belongs to it.
        threshold: Of first-block caching.
    """
    if config.first_block_caching:
        return FirstBlockCache(threshold=threshold)
    if config.taylorseer:
        return TaylorSeer(
            cache_interval=config.taylorseer_cache_interval,
            warmup_steps=config.taylorseer_warmup_steps,
            max_order=config.taylorseer_max_order,
        )
    return None


def flags_of(cache: StepCache | None) -> dict[str, bool | int]:
    """The flags of MAX that come nearest: first-block caching has but one, which says neither threshold nor block."""
    if isinstance(cache, TaylorSeer):
        return {
            "taylorseer": True,
            "taylorseer_cache_interval": cache.cache_interval,
            "taylorseer_warmup_steps": cache.warmup_steps,
            "taylorseer_max_order": cache.max_order,
        }
    usual = cache is not None and cache.block == FirstBlockCache.block
    return {"first_block_caching": True} if usual else {}


def _written(method: str, cache: StepCache) -> str:
    return f"{method}:{','.join(f'{field.name}={getattr(cache, field.name)}' for field in fields(cache))}"


def _value(name: str, text: str, kind: str) -> object:
    if kind not in ("int", "float"):
        return text
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        raise ValueError(f"{name} must be a {'whole ' if kind == 'int' else ''}number, got {text[:40]!r}") from None


def _check_count(name: str, value: object, low: int) -> None:
    if not _is_whole(value) or value < low:  # type: ignore[operator]  # a whole number by then
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
    if value > _MOST:  # type: ignore[operator]
        raise ValueError(f"{name} must be at most {_MOST}, got {str(value)[:40]}")


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (float, np.floating)) or _is_whole(value)
