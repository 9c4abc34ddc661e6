"""Several devices of a pipeline that compute together: which ones, and what they share.

Reference: see `graphs.model.meshed`.
"""

from __future__ import annotations

from dataclasses import replace

from max.driver import Device

from max_zimage.device.mesh import groups_of
from max_zimage.device.plans import Wish
from max_zimage.errors import RequestError
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.placing import device_of


def mesh_of(wish: Wish, main: Device) -> list[Device]:
    """The devices that the transformer is to run on, its own first."""
    return [main, *map(device_of, wish.mesh[1:])]


def with_groups(wish: Wish, sources: CheckpointManifest) -> Wish:
    """The wish with what its devices share, where that is left to the checkpoint.

    Raises:
        RequestError: If weights are quantized in memory, which is for one CPU.
    """
    if not wish.mesh:
        return wish
    if sources.quantize:
        message = "{field} {given} and devices exclude each other: weights quantized in memory are for one CPU; "
        raise RequestError.of("quantize", f"{message}leave one of the two out", given=sources.quantize)
    is_guided = sources.defaults.guidance_scale > 0
    return replace(wish, groups=groups_of(wish.split, len(wish.mesh), is_guided=is_guided))
