"""Whether what a request says of normalized attention guidance fits together, and does anything."""

from __future__ import annotations

import dataclasses

import numpy as np

from max_zimage.errors import RequestError
from max_zimage.request.facts import RequestFacts
from max_zimage.request.nag_fields import NAG_SCALE, NagFields

_DEFAULTS = {field.name: field.metadata["row"].default for field in dataclasses.fields(NagFields)}


def check_nag(asked: RequestFacts, *, streams_blocks: bool, groups: int = 0) -> None:
    """Refuse what contradicts itself or would do nothing.

    Args:
        asked: The request.
        streams_blocks: Whether the transformer's blocks come one at a time, which have no guided attention.
        groups: Of devices that compute together, which have none either; 0 for one device.
    """
    if not asked.nag_scale:
        changed = [name for name, value in _DEFAULTS.items() if getattr(asked, name) != value]
        if changed:
            message = "{field} would do nothing; set {name[nag_scale]} to {scale:g}, for example, or leave it out"
            raise RequestError.of(changed[0], message, scale=NAG_SCALE)
        return
    if asked.use_guidance:
        message = "{field} stands in for guidance, and {name[guidance_scale]} is {given:g}; set one of the two to 0"
        raise RequestError.of("nag_scale", message, given=asked.max_guidance)
    if streams_blocks:
        message = "{field} cannot go with streamed blocks, got {given:g}; set it to 0, or take another placement"
        raise RequestError.of("nag_scale", message, given=asked.nag_scale)
    if groups:
        message = "{field} cannot go with several devices, got {given:g}; set it to 0, or take one device"
        raise RequestError.of("nag_scale", message, given=asked.nag_scale)
    if asked.slg_scale:
        message = "{field} and {name[slg_scale]} exclude each other, got {nag:g} and {slg:g}; set one of the two to 0"
        raise RequestError.of("nag_scale", message, nag=asked.nag_scale, slg=asked.slg_scale)


def check_levels(asked: RequestFacts, first: float) -> None:
    """Refuse guidance that ends before the first step.

    Args:
        asked: The request.
        first: The noise level of the first step that is taken.
    """
    if asked.nag_scale and not first >= np.float32(asked.nag_sigma_end):
        message = "{field} {end:g} is above all noise levels: the first step begins at {first:.3g}; lower it"
        raise RequestError.of("nag_sigma_end", message, end=asked.nag_sigma_end, first=first)
