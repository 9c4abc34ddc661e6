"""Each sampler's formula, as its paper or its textbook has it: a file for every one, with a function of the same name.

It takes the noise levels of the whole way, [N + 1] from high to 0, and the latents at its beginning, and returns the
latents at its end, in float64.
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


def formulas() -> dict[str, Formula]:
    """Sampler -> its formula, of all files here."""
    return {each.name: getattr(import_module(f"{__name__}.{each.name}"), each.name) for each in iter_modules(__path__)}
