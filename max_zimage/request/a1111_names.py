"""What AUTOMATIC1111's web UI and its clients call samplers and sigma shapes, both ways. Imports no numpy.

A sampler's name may end with that of a shape, as older clients write it: "DPM++ 2M Karras". Names are read whatever
their case, and those of this project are read too.

Reference: reference/scale-and-ux.md sections 9 and 11; stable-diffusion-webui modules/sd_samplers.py, sd_schedulers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES

AUTOMATIC = "Automatic"
"""The shape that goes with the sampler there; here that of the checkpoint."""

_SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "unipc": "UniPC",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "res_multistep": "Res Multistep",
    "er_sde": "ER SDE",
}
_SHAPES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "simple": "Simple",
    "normal": "Normal",
    "sgm_uniform": "SGM Uniform",
    "ddim_uniform": "DDIM",
    "kl_optimal": "KL Optimal",
}

SAMPLER_LABELS: Mapping[str, str] = MappingProxyType({name: _SAMPLERS.get(name, name) for name in SAMPLERS})
"""Sampler -> what it is called there; its own name where it is not known there."""

SHAPE_LABELS: Mapping[str, str] = MappingProxyType({name: _SHAPES.get(name, name) for name in SIGMA_SHAPES})
"""Sigma shape -> the same."""


def aliases(sampler: str) -> tuple[str, ...]:
    """Further names of a sampler."""
    return sampler, f"k_{sampler}"


_KNOWN_SAMPLERS = {word.lower(): name for name, label in SAMPLER_LABELS.items() for word in (label, *aliases(name))} | {
    "k_euler_a": "euler_ancestral"
}
_KNOWN_SHAPES = {word.lower(): name for name, label in SHAPE_LABELS.items() for word in (label, name)}


def shape_of(label: str) -> str | None:
    """The sigma shape of a name; None for the automatic one.

    Raises:
        ValueError: If there is none; names those there are.
    """
    if label.lower() in ("", AUTOMATIC.lower()):
        return None
    found = _KNOWN_SHAPES.get(label.lower())
    if found is None:
        known = ", ".join((AUTOMATIC, *SHAPE_LABELS.values()))
        raise ValueError(f"no scheduler is called {label[:40]!r} here; there are {known}")
    return found


def sampler_of(label: str) -> tuple[str, str | None]:
    """The sampler of a name, and the sigma shape that its end may stand for.

    >>> sampler_of("DPM++ 2M Karras")
    ('dpmpp_2m', 'karras')

    Raises:
        ValueError: If there is none; names those there are.
    """
    whole = label.lower()
    if whole in _KNOWN_SAMPLERS:
        return _KNOWN_SAMPLERS[whole], None
    for word, shape in _KNOWN_SHAPES.items():
        begin = whole.removesuffix(f" {word}")
        if begin != whole and begin in _KNOWN_SAMPLERS:
            return _KNOWN_SAMPLERS[begin], shape
    raise ValueError(f"no sampler is called {label[:40]!r} here; there are {', '.join(SAMPLER_LABELS.values())}")
