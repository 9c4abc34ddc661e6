"""The most memory that a part of a run held: the process's own on a CPU, the device's elsewhere.

The peak that `getrusage` tells cannot be reset, and a child begins with its parent's; the kernel's own, VmHWM, can.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from max.driver import Device

_PROCESS = Path("/proc/self")


class MemoryMeter(Protocol):
    """Something that knows how much memory is held.

    Attributes:
        meaning: What its numbers are, in words, or why there are none.
    """

    meaning: str

    def begin(self) -> int | None:
        """Forget the peak so far; returns the bytes held now, None where nobody knows."""

    def end(self) -> int | None:
        """Bytes held at most since `begin`, None where nobody knows."""


def meter(device: Device) -> MemoryMeter:
    """What can be measured for work on a device."""
    return HostMemory() if device.is_host else DeviceMemory(device)


class HostMemory:
    """This process, from the kernel's own record of it.

    Args:
        process: Its folder in /proc.
    """

    def __init__(self, process: Path = _PROCESS) -> None:
        self._process = process
        self._offered = self._reset()
        self.meaning = (
            "peak resident memory of the process (VmHWM), weights, Python and MAX included"
            if self._offered
            else "not measured: this system has no peak of memory that can be reset (/proc/self/clear_refs)"
        )

    def begin(self) -> int | None:
        """Forget the peak so far; returns the bytes resident now."""
        return self._read("VmRSS") if self._offered and self._reset() else None

    def end(self) -> int | None:
        """Bytes resident at most since `begin`."""
        return self._read("VmHWM") if self._offered else None

    def _reset(self) -> bool:
        try:
            (self._process / "clear_refs").write_text("5")
        except OSError:
            return False
        return self._read("VmHWM") is not None

    def _read(self, key: str) -> int | None:
        try:
            lines = (self._process / "status").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


@dataclass
class DeviceMemory:
    """An accelerator, which tells what is held and no peak.

    Args:
        device: The accelerator.
    """

    device: Device

    def __post_init__(self) -> None:
        self.meaning = (
            "device memory held when the calls had ended, not a peak: the device offers none"
            if self._held() is not None
            else "not measured: the device does not tell how much of its memory is held"
        )

    def begin(self) -> int | None:
        """Bytes held now."""
        return self._held()

    def end(self) -> int | None:
        """Bytes held now."""
        return self._held()

    def _held(self) -> int | None:
        stats = self.device.stats
        if "total_memory" not in stats or "free_memory" not in stats:
            return None
        return int(stats["total_memory"]) - int(stats["free_memory"])
