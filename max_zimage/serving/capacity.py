"""Whether the largest request that a server allows fits into the device's memory; asked at the start."""

from __future__ import annotations

import logging
from dataclasses import replace

from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.device.placement import with_peaks
from max_zimage.device.plans import HOST, Plan, Wish
from max_zimage.enhancer.base import Enhancer
from max_zimage.host.sizes import sized
from max_zimage.pipeline.estimate import activation_bytes
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.placing import Size, memory_of, needs_of, placed_usually
from max_zimage.serving.settings import ServerSettings

_log = logging.getLogger("max_zimage.serving")

_SIDES = (4096, 3072, 2048, 1536, 1280, 1024, 768, 512, 256, 128)
"""Sides of square pictures that are tried for one that fits."""


def with_capacity(settings: ServerSettings, prepared: CheckedModel, enhancer: Enhancer | None = None) -> CheckedModel:
    """Choose where components go, so that the largest request fits; told in the log if that is not everything in one.

    Args:
        settings: The server's.
        prepared: The checkpoint.
        enhancer: What will be loaded beside it, by another process; None for none.

    Raises:
        NotEnoughMemoryError: If it does not fit; names limits that do.
        ValueError: If the enhancer's files hold no whole model.
    """
    if enhancer is None:
        return _placed(settings, prepared)
    taken = enhancer.weights()
    for name, nbytes in taken.items():
        there = memory_of(Wish(devices={"transformer": name}))[name]
        if nbytes > there:
            raise NotEnoughMemoryError(
                f"the enhancer {enhancer.name} has {sized(nbytes)} of weights, {sized(there)} are there on {name}; "
                "name a smaller one, or an address"
            )
    try:
        return _placed(settings, replace(prepared, wish=replace(prepared.wish, taken=taken)))
    except NotEnoughMemoryError as error:
        if not taken:
            raise
        kept = " and ".join(f"{sized(nbytes)} on {name}" for name, nbytes in taken.items())
        raise NotEnoughMemoryError(
            f"{error}; {kept} are kept for the enhancer {enhancer.name}, which an address would not need"
        ) from error


def _placed(settings: ServerSettings, prepared: CheckedModel) -> CheckedModel:
    for note in prepared.wish.notes:
        _log.info("%s", note)
    if prepared.wish.mesh and settings.pictures_together(on_host=prepared.devices[0].is_host) > 1:
        # Captions of several requests are of unequal length.
        prepared = replace(prepared, wish=replace(prepared.wish, is_padded=True))
    plan = placed_usually(prepared.sources, prepared.wish)
    sources = prepared.sources.with_streams(plan.residency == "streamed")
    found = _fitting(settings, replace(prepared, sources=sources), plan)
    if not plan.is_plain:
        _log.info("placement: %s", plan.why)
    if found.plan is not None and found.plan.stay < plan.stay:
        _log.info("placement: %d blocks stay, for the largest request takes more", found.plan.stay)
    return found


def _fitting(settings: ServerSettings, prepared: CheckedModel, plan: Plan) -> CheckedModel:
    """The plan as the largest request has room with it: with fewer blocks that stay, or the transformer gone before.

    Raises:
        NotEnoughMemoryError: If it has none.
    """
    alones = (plan.decodes_alone,) if plan.residency == "resident" or plan.decodes_alone else (False, True)
    tried = [replace(plan, decodes_alone=alone, stay=stay) for alone in alones for stay in range(plan.stay, -1, -1)]
    for each in tried:
        found = replace(prepared, plan=each)
        try:
            check_capacity(settings, found)
        except NotEnoughMemoryError:
            if each is tried[-1]:
                raise
        else:
            return found
    raise AssertionError("there is always a plan to be tried")


def check_capacity(settings: ServerSettings, prepared: CheckedModel, available: int | None = None) -> int:
    """Compare the largest request with the memory there is.

    Args:
        settings: The server's; the estimate is for its limits.
        prepared: The checkpoint.
        available: Bytes of the transformer's device; its memory by default, or what is free on a CPU.

    Returns:
        The estimate for the transformer's device in bytes, weights included.

    Raises:
        NotEnoughMemoryError: If it does not fit; names limits that do.
    """
    device, limits = prepared.devices[0], settings.limits
    allowed = _allowed(prepared, available)
    pictures = max(limits.images, settings.pictures_together(on_host=device.is_host))

    def lacking(pixels: int, count: int) -> list[str]:
        """The devices whose memory does not do."""
        return [name for name, peak in _needed(prepared, pixels, count).items() if peak > allowed[name]]

    needed, main = _needed(prepared, limits.pixels, pictures), prepared.wish.devices["transformer"]
    short = lacking(limits.pixels, pictures)
    if not short:
        return needed[main]
    smaller = [side * side for side in _SIDES if side * side < limits.pixels]
    fitting = [pixels for pixels in smaller if not lacking(pixels, pictures)]
    alone = [pixels for pixels in (limits.pixels, *smaller) if not lacking(pixels, 1)]
    if fitting:
        way = f"--max-pixels {fitting[0]} would fit"
    elif alone:
        way = f"--max-pixels {alone[0]} --max-images 1 --batch-pictures 1 would fit"
    else:
        way = "not even one small picture fits beside the weights; take a larger device"
    raise NotEnoughMemoryError(
        f"{pictures} pictures of {limits.pixels} pixels at a time, which the limits allow, need about "
        f"{sized(needed[short[0]])} with the weights, {sized(allowed[short[0]])} are there on {short[0]}; {way}"
    )


def _allowed(prepared: CheckedModel, available: int | None) -> dict[str, int]:
    """Device -> bytes that may be taken; of an accelerator that has everything all of it, as MAX gives from it."""
    device, wish = prepared.devices[0], prepared.wish
    main = wish.devices["transformer"]
    if available is None and (prepared.plan is None or prepared.plan.is_plain):
        there = available_memory() if device.is_host else int(device.stats["total_memory"])
        available = max(0, there - wish.taken.get(main, 0))
    allowed = memory_of(wish) | ({} if available is None else {main: available})
    limited = {main, *wish.mesh}
    return allowed | {name: min(allowed[name], wish.max_memory or allowed[name]) for name in limited}


def _needed(prepared: CheckedModel, pixels: int, pictures: int) -> dict[str, int]:
    """Device -> bytes of weights and of a square batch with guidance."""
    sources = prepared.sources
    side = max(16, round(pixels**0.5 / 16) * 16)
    plan = prepared.plan
    if plan is not None and not plan.is_plain:
        size = Size(height=side, width=side, branches=3, pictures=pictures)
        return dict(with_peaks(plan, needs_of(sources, size, plan.devices["vae"] == HOST)).peaks)
    activations = activation_bytes(
        sources.specs, height=side, width=side, branches=3, dtype=sources.dtypes["transformer"], pictures=pictures
    )
    return {prepared.wish.devices["transformer"]: sum(sources.nbytes.values()) + activations}
