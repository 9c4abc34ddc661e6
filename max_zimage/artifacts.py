"""Compiled graphs on disk, so that a second start neither traces nor compiles.

MAX keeps compiled models itself, but looks them up by the traced graph: tracing and the look-up take most of a warm
start (10 s of 13 s for the embedded model on two cores, 0.5 s with artifacts). An artifact is named by what decides
its contents: MAX's version, the sources of `graphs` and `kernels`, its graphs' names, shapes and types, and the device.
Weights are not in it. Graphs that are compiled together share one artifact.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from max.driver import Device
from max.engine import CompiledModel
from max.experimental.nn import Module
from max.graph import TensorType

from max_zimage import graphs
from max_zimage.graphs.cpu import instructions
from max_zimage.graphs.kernel_library import KERNELS

_KEPT = 64  # artifacts; one is 0.1 to 50 MB, a checkpoint has one on a CPU and up to 14 on a GPU
_SOURCES = Path(graphs.__file__).resolve().parent


def artifact_path(names: Sequence[str], keys: Iterable[str]) -> Path:
    """Where the artifact of graphs that are compiled together is, or will be.

    Args:
        names: The graphs' names.
        keys: Their `artifact_key`s.

    Returns:
        A path in the folder MAX_ZIMAGE_CACHE, or else in the user's cache folder.
    """
    digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
    return _folder() / f"{'+'.join(names)}-{digest}.mef"


def artifact_key(
    name: str, spec: object, module: Module[..., Any], input_types: Iterable[TensorType], device: Device
) -> str:
    """Digest of all that a compiled graph depends on.

    Args:
        name: The graph's name.
        spec: The frozen dataclass that the Module was made from; its `repr` says every number that the graph contains.
        module: The Module.
        input_types: Its `input_types()`.
        device: Where the graph runs.

    Returns:
        Hexadecimal digits.
    """
    parameters = [f"{parameter} {tensor.dtype} {list(tensor.shape)}" for parameter, tensor in module.parameters]
    parts = [version("max"), _sources_digest(), name, repr(spec), *parameters, *map(repr, input_types), _target(device)]
    return hashlib.sha256(chr(0).join(parts).encode()).hexdigest()


def save(model: CompiledModel, path: Path) -> None:
    """Keep an artifact, and drop those that were not used for longest.

    A folder that cannot be written is no error: the graph is compiled, only not kept.
    """
    try:
        write(model, path)
        for old in sorted(path.parent.glob("*.mef"), key=_used, reverse=True)[_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        return


def write(model: CompiledModel, path: Path) -> None:
    """Write an artifact.

    Raises:
        OSError: If it cannot be written.
    """
    handle, scratch = _scratch(path.parent)
    os.close(handle)
    model.export_mef(scratch)
    os.replace(scratch, path)  # a reader sees the whole file or none


def check_writable() -> None:
    """See that artifacts can be kept, before what makes them takes minutes.

    Raises:
        ValueError: If the folder cannot be made or written to.
    """
    try:
        handle, scratch = _scratch(_folder())
        os.close(handle)
        os.unlink(scratch)
    except OSError as error:
        raise ValueError(
            f"artifacts go to {_folder()}, which fails: {error}; set MAX_ZIMAGE_CACHE to a folder"
        ) from error


def _scratch(folder: Path) -> tuple[int, str]:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.mkstemp(dir=folder, suffix=".part")


def found(path: Path) -> bool:
    """Whether an artifact is there; marks it as used."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True


def _folder() -> Path:
    if given := os.environ.get("MAX_ZIMAGE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "max_zimage"


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process dropped it
        return 0.0


@lru_cache(maxsize=1)
def _sources_digest() -> str:
    """Digest of everything that decides what is traced."""
    return digest_of(_SOURCES, KERNELS)


def digest_of(python: Path, mojo: Path) -> str:
    """Digest of the sources in two folders, wherever these are."""
    digest = hashlib.sha256()
    for folder, end in ((python, "py"), (mojo, "mojo")):
        for file in sorted(folder.rglob(f"*.{end}"), key=lambda file: file.relative_to(folder).parts):
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@lru_cache(maxsize=8)
def _target(device: Device) -> str:
    """What the code is compiled for: a GPU's architecture, or the instructions that this CPU has."""
    if not device.is_host:
        return f"{device.api} {device.architecture_name}"
    return " ".join(["cpu", platform.machine(), *sorted(instructions())])
