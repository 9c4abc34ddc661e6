"""Whether a checkpoint fits into memory, asked before anything is loaded."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
from max.driver import Device

from max_zimage.host.sizes import sized

_CGROUP = Path("/sys/fs/cgroup")


class NotEnoughMemoryError(ValueError):
    """The weights are larger than the memory that is free."""


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes that can be allocated without swapping.

    Args:
        cgroup: Where the limits of a container (cgroup v2) are kept; a container may have less than its machine.
    """
    machine = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        # File pages that nothing has touched lately are given up for the asking.
        return min(machine, limit - used + int(statistics["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no such container, or "max": no limit
        return machine


def check_device_memory(required: int, device: Device) -> None:
    """Refuse what no accelerator of this kind holds.

    Its whole memory is compared, not what is free: MAX may have taken a part for itself already, and gives from it.

    Args:
        required: Bytes of all components' weights.
        device: Where they go.

    Raises:
        NotEnoughMemoryError: If they do not fit.
    """
    check_memory(required, int(device.stats["total_memory"]), f" on {device.label}:{device.id}")


def check_memory(required: int, available: int, where: str = "") -> None:
    """Refuse what does not fit.

    Args:
        required: Bytes of the weights in the dtype they will have, e.g. the sum of `LoadPlan.nbytes`.
        available: Bytes free, e.g. `available_memory()`.
        where: Said in the error.

    Raises:
        NotEnoughMemoryError: If they do not fit.
    """
    if required > available:
        raise NotEnoughMemoryError(
            f"the checkpoint's weights need {sized(required)}, {sized(available)} are available{where}; free memory, "
            "use bfloat16 where float32 was asked for, or a machine with more"
        )


def give_back() -> None:
    """Have the C library give the system back what it keeps of freed memory, where it is GNU's.

    It keeps blocks of up to 32 MiB for later use: the memory of weights that have left.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform.startswith("linux") else None
    except (OSError, AttributeError):  # another C library
        return None
