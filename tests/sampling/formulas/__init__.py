"""Each sampler's formula, as its paper or its textbook has it: a file for every one, with a function of the same name.

It takes the noise levels of the whole way, [N + 1] from high to 0, and the latents at its beginning, and returns the
latents at its end, in float64. Noise is `drawn(x, step)`. A file whose sampler cannot begin at 1 says with `BEGINS`
what stands for 1 before the shift.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Formula = Callable[[list[float], Array], Array]


def model(x: Array, sigma: float) -> Array:
    """Something that bends: neither constant in the latents nor in the noise level."""
    return np.asarray(np.tanh(x) * (1.3 - sigma) + np.sin(3 * sigma + np.arange(x.size).reshape(x.shape)), x.dtype)


def drawn(x: Array, step: int, which: int = 0) -> Array:
    """Normal noise of a step, and of which evaluation in it."""
    return np.random.default_rng([step, which]).standard_normal(x.shape)


def formulas() -> dict[str, Formula]:
    """Sampler -> its formula, of all files here."""
    return {name: getattr(_file(name), name) for name in names()}


def names() -> list[str]:
    """All samplers that have a formula."""
    return [each.name for each in iter_modules(__path__)]


def beginning(name: str, levels: list[float], shift: float) -> list[float]:
    """The levels of a way, the first one a little below 1 where a sampler wants that."""
    begins = getattr(_file(name), "BEGINS", 1.0)
    return [min(levels[0], shift * begins / (1 + (shift - 1) * begins)), *levels[1:]]


def _file(name: str) -> object:
    return import_module(f"{__name__}.{name}")
