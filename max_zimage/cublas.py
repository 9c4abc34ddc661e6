"""cuBLAS, which multiplies matrices on NVIDIA GPUs, found where a CUDA toolkit or Python packages have it.

Graphs for such a GPU call it, see `graphs.kernel_library.compile_with_kernels`. MAX opens it by its name and does not
bring it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from max.driver import Device

NAMES = ("libcublas.so.13", "libcublas.so.12")
"""What MAX 26.7 opens."""
TOOLKITS = Path("/usr/local")
"""Where CUDA toolkits are installed."""


def check_cublas(device: Device) -> None:
    """See that graphs on a device find cuBLAS, and have it found if it lies where only Python looks.

    Raises:
        ValueError: If the device is NVIDIA's and no such library can be loaded.
    """
    if not device.is_host and device.api == "cuda" and not loaded():
        raise ValueError(
            f"graphs for an NVIDIA GPU need cuBLAS ({' or '.join(NAMES)}), which cannot be loaded; install a CUDA "
            'toolkit, or nvidia-cublas (CUDA 13) or nvidia-cublas-cu12 with pip, or use device="cpu"'
        )


@cache
def loaded() -> bool:
    """Load cuBLAS into this process, so that opening it by its name finds it."""
    return any(map(_opened, places()))


def places() -> Iterator[str]:
    """Where it may be: the loader's own places, CUDA toolkits, the packages that PyTorch comes with."""
    yield from NAMES
    spec = find_spec("nvidia")
    packages = spec.submodule_search_locations if spec else None
    folders = [(TOOLKITS, "cuda*/lib64"), *((Path(folder), "*/lib") for folder in packages or ())]
    for name in NAMES:
        for folder, pattern in folders:
            yield from map(str, sorted(folder.glob(f"{pattern}/{name}")))


def _opened(path: str) -> bool:
    try:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
