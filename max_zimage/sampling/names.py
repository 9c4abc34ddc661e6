"""Names of samplers and of sigma shapes. Imports no numpy: the command line's help reads them too."""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules

DEFAULT_SAMPLER = "euler"
SAMPLERS: tuple[str, ...] = tuple(
    sorted(module.name for module in iter_modules([str(Path(__file__).with_name("samplers"))]))
)
"""All samplers there are: a file each in `max_zimage/sampling/samplers/`."""

DEFAULT_SHAPE = "linear"
STRETCHED = (DEFAULT_SHAPE, "karras", "exponential", "beta")
"""diffusers' ways to spread noise levels over the steps; a last level (`shift_terminal`) stretches these alone."""

SIGMA_SHAPES: tuple[str, ...] = (
    *STRETCHED,
    "simple",
    "normal",
    "sgm_uniform",
    "ddim_uniform",
    "beta57",
    "kl_optimal",
    "linear_quadratic",
    "bong_tangent",
    "comfy_beta",
    "comfy_karras",
    "comfy_exponential",
)
"""All ways there are; see `max_zimage.sampling.shapes`."""

UNSHIFTED = frozenset({"linear_quadratic", "bong_tangent"})
"""Those whose levels no shift moves."""
