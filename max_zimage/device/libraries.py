"""The libraries of NVIDIA's that graphs for its GPUs call, found where a CUDA toolkit or Python packages have them.

cuBLAS multiplies matrices, see `graphs.kernel_library.compile_with_kernels`, and cuDNN convolves, see
`graphs.model.vae_blocks.CudnnConv`. MAX opens them by their names and does not bring them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from max.driver import Device

from max_zimage.errors import RequestError

TOOLKITS = Path("/usr/local")
"""Where CUDA toolkits are installed."""


@dataclass(frozen=True)
class Library:
    """One of them.

    Attributes:
        name: What it is called.
        files: What MAX 26.7 opens.
        packages: What brings it with pip.
        part: A function that needs the library's parts, which are files of their own, and returns zero if they are
            there; None if it has none.
    """

    name: str
    files: tuple[str, ...]
    packages: str
    part: str | None = None


CUBLAS = Library("cuBLAS", ("libcublas.so.13", "libcublas.so.12"), "nvidia-cublas (CUDA 13) or nvidia-cublas-cu12")
CUDNN = Library("cuDNN", ("libcudnn.so.9",), "nvidia-cudnn-cu13 or nvidia-cudnn-cu12", "cudnnCnnVersionCheck")
LIBRARIES = (CUBLAS, CUDNN)
"""In the order they are loaded: cuDNN calls cuBLAS."""


def check_libraries(device: Device) -> None:
    """Check that graphs on a device find what they call, and preload it if it lies where only Python looks.

    Raises:
        RequestError: If the device is NVIDIA's and a library cannot be loaded; names all that cannot.
    """
    if device.is_host or device.api != "cuda":
        return
    missing = [library for library in LIBRARIES if not loaded(library)]
    if missing:
        names = " and ".join(f"{library.name} ({' or '.join(library.files)})" for library in missing)
        packages = ", and ".join(library.packages for library in missing)
        raise RequestError.of(
            "device",
            "graphs for an NVIDIA GPU need {names}, which cannot be loaded; install a CUDA toolkit with cuDNN, or "
            "{packages} with pip, or {say[cpu]}",
            names=names,
            packages=packages,
        )


@cache
def loaded(library: Library) -> bool:
    """Load a library into this process, so that opening it by its name finds it."""
    return any(_opened(path, library.part) for path in candidate_paths(library))


def candidate_paths(library: Library) -> Iterator[str]:
    """Where it may be: the loader's own places, CUDA toolkits, the packages that PyTorch comes with."""
    yield from library.files
    spec = find_spec("nvidia")
    packages = spec.submodule_search_locations if spec else None
    folders = [(TOOLKITS, "cuda*/lib64"), *((Path(folder), "*/lib") for folder in packages or ())]
    for name in library.files:
        for folder, pattern in folders:
            yield from map(str, sorted(folder.glob(f"{pattern}/{name}")))


def _opened(path: str, part: str | None) -> bool:
    try:
        opened = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        return part is None or getattr(opened, part)() == 0
    except (OSError, AttributeError):
        return False
