"""Names of samplers and sigma shapes as AUTOMATIC1111's web UI lists them, each one's own, both ways. Imports no numpy.

A name stands for what computes as it does there: "Karras" is `comfy_karras`, and the shape of diffusers is
"Karras (diffusers)". Read are also names of k-diffusion, and a sampler's that ends with a shape's, as older clients
write them: "DPM++ 2M Karras".

Reference: reference/scale-and-ux.md sections 9 and 11; stable-diffusion-webui modules/sd_samplers.py, sd_schedulers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from max_zimage.sampling import other_names
from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES

AUTOMATIC = other_names.AUTOMATIC.capitalize()
"""The shape that goes with the sampler there; here that of the checkpoint."""


def _listed(names: tuple[str, ...], labels: Mapping[str, str], read: Callable[[str], str | None]) -> Mapping[str, str]:
    """Name -> a label that is read as this one and no other."""
    found = {}
    for name in names:
        own = (labels[name], name.capitalize(), f"{labels[name]} (diffusers)")
        found[name] = next((label for label in own if read(label) == name), own[-1])
    return MappingProxyType(found)


SAMPLER_LABELS = _listed(SAMPLERS, other_names.SAMPLER_LABELS, lambda label: other_names.sampler_of(label)[0])
"""Sampler -> what it is listed as."""

SHAPE_LABELS = _listed(SIGMA_SHAPES, other_names.SHAPE_LABELS, other_names.shape_of)
"""Sigma shape -> the same."""


def key_of(label: str) -> str:
    """A label as the name of a scheduler, which is written so: "SGM Uniform" is sgm_uniform."""
    return label.lower().replace(" ", "_").replace("(", "").replace(")", "")


_SAMPLERS = {word: name for name, label in SAMPLER_LABELS.items() for word in (label.lower(), key_of(label))}
_SHAPES = {word: name for name, label in SHAPE_LABELS.items() for word in (label.lower(), key_of(label))}


def shape_of(label: str) -> str | None:
    """The sigma shape of a name; None for the automatic one.

    Raises:
        ValueError: If there is none; names those there are.
    """
    word = label.strip().lower()
    if word in ("", other_names.AUTOMATIC):
        return None
    found = _SHAPES.get(word) or other_names.shape_of(word)
    if found is None:
        known = ", ".join((AUTOMATIC, *SHAPE_LABELS.values()))
        raise ValueError(f"no scheduler is called {label[:40]!r} here; there are {known}")
    return found


def sampler_of(label: str) -> tuple[str, str | None]:
    """The sampler of a name, and the sigma shape that its end may stand for.

    >>> sampler_of("DPM++ 2M Karras")
    ('comfy_dpmpp_2m', 'comfy_karras')

    Raises:
        ValueError: If there is none; names those there are.
    """
    word = label.strip().lower().removeprefix("k_")
    if word in _SAMPLERS:
        return _SAMPLERS[word], None
    name, end = other_names.sampler_of(word)
    if name is not None:
        return name, None if end is None else shape_of(end)
    for shape in sorted(_SHAPES, key=len, reverse=True):
        begin = word.removesuffix(f" {shape}")
        if begin != word and (begin in _SAMPLERS or other_names.sampler_of(begin) != (None, None)):
            return sampler_of(begin)[0], _SHAPES[shape]
    raise ValueError(f"no sampler is called {label[:40]!r} here; there are {', '.join(SAMPLER_LABELS.values())}")
