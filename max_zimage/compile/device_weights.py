"""Weights that are on an accelerator once, for every graph that reads them.

As MAX has it, weights are given on the host, and every graph makes a copy of its own on its device when it is loaded:
what two graphs read is there twice, also where they are compiled as one module. A graph can be made to read weights
where they lie on the device instead (`graphs.layers.trace`, `weights_in_place`): then it copies none, and graphs that
are given the same buffers share them. Reference: what MAX 26.7 compiles either way, docs/gpu.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from max.driver import Buffer, Device

VARIABLE = "MAX_ZIMAGE_DEVICE_WEIGHTS"
"""`shared`, or `copied`, the default until a GPU has shown that graphs read shared ones right."""


def shared(device: Device) -> bool:
    """Whether weights lie on a device once; on a CPU they do in any case, and nothing is done for it.

    Raises:
        ValueError: If the variable is something else than shared or copied.
    """
    value = os.environ.get(VARIABLE, "copied")
    if value not in ("shared", "copied"):
        raise ValueError(f"{VARIABLE} must be shared or copied, got {value!r}")
    return value == "shared" and not device.is_host


class OnDevice(Mapping[str, Buffer]):
    """Weights on a device: each is brought there when it is first asked for, and its host memory given back.

    Args:
        weights: Name -> data in host memory; taken over.
        device: Where they go.
    """

    def __init__(self, weights: dict[str, Buffer], device: Device) -> None:
        self._host, self._device = weights, device
        self._there: dict[str, Buffer] = {}

    def __getitem__(self, name: str) -> Buffer:
        """The one buffer of a name."""
        if name not in self._there:
            self._there[name] = self._host[name].to(self._device)
            self._device.synchronize()  # what is copied must not be freed before
            del self._host[name]
        return self._there[name]

    def __iter__(self) -> Iterator[str]:
        """All names, wherever their data is."""
        return iter([*self._there, *self._host])

    def __len__(self) -> int:
        """How many there are."""
        return len(self._there) + len(self._host)

    def forget_others(self) -> None:
        """Give the host memory of what nobody has asked for back, and the names with it."""
        self._host.clear()


def are_in_place(weights: Mapping[str, Buffer]) -> bool:
    """Whether weights lie on an accelerator.

    Raises:
        ValueError: If some do and some do not.
    """
    places = {data.device.is_host for data in weights.values()}
    if len(places) > 1:
        raise ValueError("a graph's weights are either all on the host or all on its device")
    return places == {False}
