"""cuBLAS and cuDNN on NVIDIA GPUs: found before anything is loaded, or said to be missing; cuBLAS asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from max.driver import Device
from max.graph import Module

from max_zimage.device import libraries as nvidia_libraries
from max_zimage.device.libraries import CUBLAS, CUDNN, candidate_paths, check_libraries, loaded
from max_zimage.graphs.kernel_library import compile_with_kernels

CPU, NVIDIA, AMD = (cast(Device, SimpleNamespace(is_host=api == "cpu", api=api)) for api in ("cpu", "cuda", "hip"))
FILES = {"cu13": "libcublas.so.none", "cudnn": "libcudnn.so.none"}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder of Python packages, the only place where something may be found; the C library stands in for cuDNN."""
    blas, dnn = replace(CUBLAS, files=(FILES["cu13"],)), replace(CUDNN, files=(FILES["cudnn"],), part="getpid")
    monkeypatch.setattr(nvidia_libraries, "TOOLKITS", tmp_path / "nothing")
    monkeypatch.setattr(nvidia_libraries, "LIBRARIES", (blas, dnn))
    packages = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(nvidia_libraries, "find_spec", lambda _: packages)
    loaded.cache_clear()
    yield tmp_path
    loaded.cache_clear()


def without_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that need nothing besides themselves."""
    alone = tuple(replace(library, part=None) for library in nvidia_libraries.LIBRARIES)
    monkeypatch.setattr(nvidia_libraries, "LIBRARIES", alone)


def test_only_an_nvidia_gpu_needs_them(elsewhere: Path) -> None:
    check_libraries(CPU)
    check_libraries(AMD)
    both = r"need cuBLAS \(libcublas\.so\.none\) and cuDNN \(libcudnn\.so\.none\), which cannot be loaded"
    with pytest.raises(ValueError, match=both):
        check_libraries(NVIDIA)


def test_they_are_found_among_pythons_packages(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_parts(monkeypatch)
    put(elsewhere, "cu13")
    with pytest.raises(ValueError, match=r"need cuDNN \(libcudnn\.so\.none\), which .* nvidia-cudnn-cu13 or"):
        check_libraries(NVIDIA)
    loaded.cache_clear()
    library = put(elsewhere, "cudnn")
    assert str(library) in list(candidate_paths(nvidia_libraries.LIBRARIES[1]))
    check_libraries(NVIDIA)


def test_a_broken_file_is_passed_over(elsewhere: Path) -> None:
    library = elsewhere / "cublas" / "lib" / FILES["cu13"]
    library.parent.mkdir(parents=True)
    library.write_bytes(b"no library")
    with pytest.raises(ValueError, match="cannot be loaded"):
        check_libraries(NVIDIA)


@pytest.mark.parametrize("part", ["getpid", "there_is_no_such_function"])
def test_a_library_without_its_parts_is_passed_over(elsewhere: Path, part: str) -> None:
    """As cuDNN says it: a function that needs them returns no zero, or is not there."""
    put(elsewhere, "cudnn")
    library = nvidia_libraries.LIBRARIES[1]
    assert loaded(replace(library, part=None))
    assert not loaded(replace(library, part=part))


def put(packages: Path, folder: str) -> Path:
    library = packages / folder / "lib" / FILES[folder]
    library.parent.mkdir(parents=True)
    library.symlink_to(_any_library())
    return library


def _any_library() -> Path:
    """A shared library that is there on every Linux with Python, and has the C library's functions behind it."""
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line)
    return Path(next(mapped))


@pytest.mark.parametrize(("devices", "asked"), [([CPU], []), ([AMD, CPU], []), ([NVIDIA, CPU], ["true"])])
def test_graphs_for_nvidia_are_compiled_to_call_it(devices: list[Any], asked: list[str]) -> None:
    switched: list[str] = []
    session: Any = SimpleNamespace(
        devices=devices, _use_vendor_blas=switched.append, compile=lambda module, custom_extensions: "compiled"
    )
    assert compile_with_kernels(session, Module(), []) == "compiled"
    assert switched == asked
