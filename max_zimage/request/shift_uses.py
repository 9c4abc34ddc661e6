"""What of the shift does not go together, for whoever puts what a request says above what stands beneath it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from max_zimage.sampling.names import DEFAULT_SHAPE, STRETCHED, UNSHIFTED


def excluded(said: Mapping[str, Any], beneath: Mapping[str, Any]) -> set[str]:
    """Fields beneath a request that what it says of shift and shape leaves no room for; see `check_shift`.

    >>> sorted(excluded({"dynamic_shift": True}, {"shift": 3.0, "sigma_shape": "bong_tangent"}))
    ['shift', 'sigma_shape']
    """
    gone: set[str] = set()
    shape, other = said.get("sigma_shape", DEFAULT_SHAPE), beneath.get("sigma_shape", DEFAULT_SHAPE)
    if "shift" in said or shape in UNSHIFTED:
        gone |= {"dynamic_shift"}
    if shape not in STRETCHED:
        gone |= {"shift_terminal"}
    if said.get("dynamic_shift"):
        gone |= {"shift"} | ({"sigma_shape"} if other in UNSHIFTED else set())
    if "shift_terminal" in said and other not in STRETCHED:
        gone |= {"sigma_shape"}
    return gone
