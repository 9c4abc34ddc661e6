"""Whether the largest request that a server allows fits into the device's memory; asked at the start."""

from __future__ import annotations

import logging
from dataclasses import replace

from max_zimage.device.memory import NotEnoughMemoryError, available_memory, gib
from max_zimage.device.placement import HOST, with_peaks
from max_zimage.pipeline.estimate import activation_bytes
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.placing import Size, needs_of, placed_usually
from max_zimage.serving.settings import ServerSettings

_log = logging.getLogger("max_zimage.serving")

_SIDES = (4096, 3072, 2048, 1536, 1280, 1024, 768, 512, 256, 128)
"""Sides of square pictures that are tried for one that fits."""


def with_capacity(settings: ServerSettings, prepared: CheckedModel) -> CheckedModel:
    """Choose where components go, so that the largest request fits; told in the log if that is not everything in one.

    Raises:
        NotEnoughMemoryError: If it does not fit; names limits that do.
    """
    for note in prepared.wish.notes:
        _log.info("%s", note)
    plan = placed_usually(prepared.sources, prepared.wish)
    if plan.residency == "resident":
        found = replace(prepared, plan=plan)
        check_capacity(settings, found)
    else:
        try:
            found = replace(prepared, plan=plan)
            check_capacity(settings, found)
        except NotEnoughMemoryError:
            found = replace(prepared, plan=replace(plan, decodes_alone=True))
            check_capacity(settings, found)
    if not plan.is_plain:
        _log.info("placement: %s", plan.why)
    return found


def check_capacity(settings: ServerSettings, prepared: CheckedModel, available: int | None = None) -> int:
    """Compare the largest request with the memory there is.

    Args:
        settings: The server's; the estimate is for its limits.
        prepared: The checkpoint.
        available: Bytes; the device's memory by default, or what is free on a CPU.

    Returns:
        The estimate in bytes, weights included.

    Raises:
        NotEnoughMemoryError: If it does not fit; names limits that do.
    """
    device, limits = prepared.devices[0], settings.limits
    if available is None:
        available = available_memory() if device.is_host else int(device.stats["total_memory"])
    available = min(available, prepared.wish.max_memory or available)
    pictures = max(limits.images, settings.pictures_together(on_host=device.is_host))
    needed = _needed(prepared, limits.pixels, pictures)
    if needed <= available:
        return needed
    smaller = [side * side for side in _SIDES if side * side < limits.pixels]
    fitting = [pixels for pixels in smaller if _needed(prepared, pixels, pictures) <= available]
    alone = [pixels for pixels in (limits.pixels, *smaller) if _needed(prepared, pixels, 1) <= available]
    if fitting:
        way = f"--max-pixels {fitting[0]} would fit"
    elif alone:
        way = f"--max-pixels {alone[0]} --max-images 1 --batch-pictures 1 would fit"
    else:
        way = "not even one small picture fits beside the weights; take a larger device"
    raise NotEnoughMemoryError(
        f"{pictures} pictures of {limits.pixels} pixels at a time, which the limits allow, need about {gib(needed)} "
        f"with the weights, {gib(available)} are there on {device.label}:{device.id}; {way}"
    )


def _needed(prepared: CheckedModel, pixels: int, pictures: int) -> int:
    """Bytes of weights and of a square batch with guidance."""
    sources = prepared.sources
    side = max(16, round(pixels**0.5 / 16) * 16)
    plan = prepared.plan
    if plan is not None and not plan.is_plain:
        size = Size(height=side, width=side, branches=3, pictures=pictures)
        peaks = with_peaks(plan, needs_of(sources, size, plan.devices["vae"] == HOST)).peaks
        return peaks[plan.devices["transformer"]]
    activations = activation_bytes(
        sources.specs, height=side, width=side, branches=3, dtype=sources.dtypes["transformer"], pictures=pictures
    )
    return sum(sources.nbytes.values()) + activations
