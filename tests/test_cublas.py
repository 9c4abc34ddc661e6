"""cuBLAS on NVIDIA GPUs: asked for in compiling, found before anything is loaded, or said to be missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from max.graph import Module

from max_zimage import cublas
from max_zimage.graphs.kernel_library import compile_with_kernels

CPU, NVIDIA, AMD = (SimpleNamespace(is_host=api == "cpu", api=api) for api in ("cpu", "cuda", "hip"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder of Python packages, the only place where something may be found."""
    monkeypatch.setattr(cublas, "TOOLKITS", tmp_path / "nothing")
    monkeypatch.setattr(cublas, "NAMES", ("libcublas.so.none",))
    monkeypatch.setattr(cublas, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    cublas.loaded.cache_clear()
    yield tmp_path
    cublas.loaded.cache_clear()


def test_only_an_nvidia_gpu_needs_it(elsewhere: Path) -> None:
    cublas.check_cublas(CPU)
    cublas.check_cublas(AMD)
    with pytest.raises(ValueError, match=r"need cuBLAS \(libcublas\.so\.none\), which cannot be loaded"):
        cublas.check_cublas(NVIDIA)


def test_it_is_found_among_pythons_packages(elsewhere: Path) -> None:
    library = elsewhere / "cu13" / "lib" / "libcublas.so.none"
    library.parent.mkdir(parents=True)
    library.symlink_to(_any_library())
    assert str(library) in list(cublas.places())
    cublas.check_cublas(NVIDIA)


def test_a_broken_file_is_passed_over(elsewhere: Path) -> None:
    library = elsewhere / "cublas" / "lib" / "libcublas.so.none"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"no library")
    with pytest.raises(ValueError, match="cannot be loaded"):
        cublas.check_cublas(NVIDIA)


def _any_library() -> Path:
    """A shared library that is there on every Linux with Python."""
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line)
    return Path(next(mapped))


@pytest.mark.parametrize(("devices", "asked"), [([CPU], []), ([AMD, CPU], []), ([NVIDIA, CPU], ["true"])])
def test_graphs_for_nvidia_are_compiled_to_call_it(devices: list[Any], asked: list[str]) -> None:
    switched: list[str] = []
    session: Any = SimpleNamespace(
        devices=devices, _use_vendor_blas=switched.append, compile=lambda module, custom_extensions: "compiled"
    )
    assert compile_with_kernels(session, Module(), []) == "compiled"  # type: ignore[comparison-overlap]
    assert switched == asked
