"""The memory that a checkpoint and its pictures take, and where its components would go on this machine."""

from __future__ import annotations

from typing import Any

from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.pipeline.estimate import activation_bytes, large_decode_bytes
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.placing import Size, placed
from max_zimage.request.checks import side


def memory_facts(prepared: CheckedModel, height: int | None, width: int | None) -> dict[str, Any]:
    """What a picture takes and what is there, in bytes.

    Raises:
        ValueError: If the size is none that the checkpoint can draw.
    """
    sources = prepared.sources
    defaults, limits = sources.defaults, sources.limits
    height = side("height", defaults.height if height is None else height, limits.max_height)
    width = side("width", defaults.width if width is None else width, limits.max_width)
    dtype = sources.dtypes["transformer"]
    guided = defaults.guidance_scale > 0
    weights = sum(sources.nbytes.values())
    activations = activation_bytes(sources.specs, height=height, width=width, branches=2 if guided else 1, dtype=dtype)
    device = prepared.devices[0]
    available = available_memory() if device.is_host else int(device.stats["free_memory"])
    fits = weights + activations <= available
    if prepared.wish.mesh:  # which share the work, and have signals besides: more than one device's sum says
        fits = placement_facts(prepared, usual_size(prepared, height, width))["fits"]
    return {
        "device": device.label + (f":{device.id}" if not device.is_host else ""),
        "height": height,
        "width": width,
        "guided": guided,
        "weights_bytes": weights,
        "activations_bytes_about": activations,
        "available_bytes": available,
        "fits": fits,
        "large_decode": large_decode_bytes(sources.specs.vae, sources.dtypes["vae"]),
    }


def usual_size(prepared: CheckedModel, height: int, width: int) -> Size:
    """That of a checkpoint's usual picture of a size, guided where it guides by default."""
    return Size(height=height, width=width, branches=2 if prepared.sources.defaults.guidance_scale > 0 else 1)


def placement_facts(prepared: CheckedModel, size: Size) -> dict[str, Any]:
    """What would be done on this machine with a checkpoint, for a picture of a size."""
    try:
        plan = placed(prepared.sources, prepared.wish, size)
    except NotEnoughMemoryError as error:
        return {"fits": False, "words": str(error)}
    return {
        "fits": True,
        "devices": dict(plan.devices),
        "mesh": list(plan.mesh),
        "residency": plan.residency,
        "stay": plan.stay,
        "words": plan.why,
    }
