"""Several devices that compute one step together, as a mesh of MAX's: groups of them, and places within a group.

    axis `branches`: one or two groups, each with some of the branch rows
    axis `tokens`:   the devices of a group, each with some of the tokens of its rows

Reference: MAX's `max.experimental.sharding`, DeviceMesh. A mesh of which all places are one CPU computes the same
numbers, with plain copies in place of what devices send each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from max.driver import Accelerator, Device
from max.experimental.sharding import DeviceMesh

from max_zimage.graphs.model.transformer import TransformerSpec

BRANCHES, TOKENS = AXES = ("branches", "tokens")
MOST = 8
"""Devices of a mesh: as many as MAX's collectives take, `max.nn.comm.Signals`."""


@dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """A transformer on several devices.

    Attributes:
        transformer: Its shape.
        places: Numbers of the accelerators in the order of their parts, the one with all arguments and results first;
            on a CPU how many there are says on how many simulated devices.
        groups: 1, or 2 for branch rows on two groups of devices.

    Raises:
        ValueError: If there are too few or too many places, or they fall into no such groups.
    """

    transformer: TransformerSpec
    places: tuple[int, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        count = len(self.places)
        if not 2 <= count <= MOST:
            raise ValueError(f"a mesh has 2 to {MOST} devices, got {count}")
        if len({*self.places}) < count:
            raise ValueError(f"a mesh has each device once, got {', '.join(map(str, self.places))}")
        if self.groups not in (1, 2) or count % self.groups:
            raise ValueError(f"{count} devices do not fall into {self.groups} equal groups, of which there are 1 or 2")

    @property
    def size(self) -> int:
        """Devices of a group."""
        return len(self.places) // self.groups

    def mesh(self, device: Device) -> DeviceMesh:
        """The devices.

        Args:
            device: One of them, or the CPU.
        """
        on_host = device.is_host
        devices = tuple(device if on_host else Accelerator(number) for number in self.places)
        return DeviceMesh(devices, (self.groups, self.size), AXES)
