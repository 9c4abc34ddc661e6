"""Whether the largest request that a server allows fits into the device's memory; asked at the start."""

from __future__ import annotations

from max_zimage.device.memory import NotEnoughMemoryError, available_memory, gib
from max_zimage.pipeline.estimate import activation_bytes
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.serving.settings import ServerSettings

_SIDES = (4096, 3072, 2048, 1536, 1280, 1024, 768, 512, 256, 128)
"""Sides of square pictures that are tried for one that fits."""


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
    activations = activation_bytes(
        sources.specs, height=side, width=side, branches=3, dtype=sources.dtypes["transformer"], pictures=pictures
    )
    return sum(sources.nbytes.values()) + activations
