"""Which components keep quantized weights, from what a user says: `transformer=int8,text_encoder=q4`.

What people call int8 has a scale for each group of inputs on a CPU, where it is multiplied as whole numbers, and one
for each output on an accelerator.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import get_args

from max.driver import Device

from max_zimage.graphs.linear import Storage as Storage

VARIABLE = "MAX_ZIMAGE_QUANTIZE"
"""What is quantized where nothing else is said."""
COMPONENTS = ("text_encoder", "transformer")
STORAGES: Mapping[str, Storage | None] = {"int8": "int8_rows", "q4": None}
"""How they may keep them on a CPU -> what it is on an accelerator; None where it is for a CPU alone."""

Quantize = str | Mapping[str, str] | None


def storages_of(
    quantize: Quantize, devices: Device | Mapping[str, Device], only: Collection[str] = COMPONENTS
) -> dict[str, Storage]:
    """Read what is to be quantized.

    Args:
        quantize: Component -> storage, or the same in words; None, or nothing in it, for no component.
        devices: Component -> where it runs; or where all run.
        only: Components that run; what is said of others is not looked at further.

    Returns:
        Component -> storage.

    Raises:
        ValueError: If there is no such component or storage, one is named twice, or a storage is not for where its
            component runs.
    """
    found = {}
    wanted = {name: each for name, each in named_storages(quantize).items() if name in only}
    for component, named in wanted.items():
        device = devices[component] if isinstance(devices, Mapping) else devices
        storage = storage_on(named, device.is_host)
        if storage is None:
            flag = {"text_encoder": "encoder_device", "transformer": "dit_device"}[component]
            there = " or ".join(name for name in STORAGES if storage_on(name, False))
            raise ValueError(
                f"quantize {named} is for a CPU, got device {device.label} for {component}={named}; "
                f"use {component}={there}, or device cpu, or {flag} cpu"
            )
        found[component] = storage
    return found


def named_storages(quantize: Quantize) -> dict[str, str]:
    """Read the same, wherever components will run: component -> what people call the storage.

    Raises:
        ValueError: If there is no such component or storage, or one is named twice.
    """
    given = _pairs(quantize) if isinstance(quantize, str) else list((quantize or {}).items())
    found: dict[str, str] = {}
    for component, named in given:
        if component not in COMPONENTS or named not in [*STORAGES]:
            raise ValueError(
                f"quantize takes COMPONENT=STORAGE with a component of {', '.join(COMPONENTS)} and a storage of "
                f"{', '.join(STORAGES)}, got {component}={named}"
            )
        if component in found:
            raise ValueError(f"quantize names {component} twice; name it once")
        found[component] = named
    return found


def storage_on(named: str, on_host: bool) -> Storage | None:
    """What a storage is on a CPU or on an accelerator; None if it is not for that."""
    return next(each for each in get_args(Storage) if each == named) if on_host else STORAGES[named]


def said(storage: Storage) -> str:
    """What people call a storage."""
    return next((named for named, elsewhere in STORAGES.items() if storage == elsewhere), storage)


def _pairs(words: str) -> list[tuple[str, str]]:
    pairs = []
    for each in words.split(",") if words.strip() else []:
        component, _, storage = each.partition("=")
        pairs.append((component.strip(), storage.strip()))
    return pairs
