"""Which components keep quantized weights, from what a user says: `transformer=int8,text_encoder=q4`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from max.driver import Device

from max_zimage.graphs.linear import Storage
from max_zimage.pipeline.manifest import CheckpointManifest

VARIABLE = "MAX_ZIMAGE_QUANTIZE"
"""What is quantized where nothing else is said."""
COMPONENTS = ("text_encoder", "transformer")
STORAGES: tuple[Storage, ...] = get_args(Storage)
"""How they may keep them."""

Quantize = str | Mapping[str, str] | None


def storages_of(quantize: Quantize, devices: Device | Mapping[str, Device]) -> dict[str, Storage]:
    """Read what is to be quantized.

    Args:
        quantize: Component -> storage, or the same in words; None, or nothing in it, for no component.
        devices: Component -> where it runs; or where all run.

    Returns:
        Component -> storage.

    Raises:
        ValueError: If there is no such component or storage, one is named twice, or one that does not run on a CPU.
    """
    given = _pairs(quantize) if isinstance(quantize, str) else list((quantize or {}).items())
    found: dict[str, Storage] = {}
    for component, named in given:
        storage = next((each for each in STORAGES if each == named), None)
        if component not in COMPONENTS or storage is None:
            raise ValueError(
                f"quantize takes COMPONENT=STORAGE with a component of {', '.join(COMPONENTS)} and a storage of "
                f"{', '.join(STORAGES)}, got {component}={named}"
            )
        if component in found:
            raise ValueError(f"quantize names {component} twice; name it once")
        found[component] = storage
    for component in found:
        device = devices[component] if isinstance(devices, Mapping) else devices
        if not device.is_host:
            place = {"text_encoder": "encoder_device", "transformer": "dit_device"}[component]
            raise ValueError(
                f"quantize is for a CPU, got device {device.label} for {component}={found[component]}; leave it out, "
                f"or use device cpu, or {place} cpu"
            )
    return found


def with_storages(sources: CheckpointManifest, storages: Mapping[str, Storage]) -> CheckpointManifest:
    """The same checkpoint, with matrices of some components quantized when they are loaded."""
    plans = {name: replace(each, kept_as=storages.get(name)) for name, each in sources.plans.items()}
    return replace(sources, plans=plans)


def _pairs(words: str) -> list[tuple[str, str]]:
    pairs = []
    for each in words.split(",") if words.strip() else []:
        component, _, storage = each.partition("=")
        pairs.append((component.strip(), storage.strip()))
    return pairs
