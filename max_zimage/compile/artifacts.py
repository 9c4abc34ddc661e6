"""Compiled graphs on disk, so that a second start neither traces nor compiles.

MAX keeps compiled models itself, but looks them up by the traced graph: tracing and the look-up take most of a warm
start (10 s of 13 s for the embedded model on two cores, 0.5 s with artifacts). An artifact is named by what decides
its contents: MAX's version, the sources of `graphs` and `kernels`, its graphs' names, shapes and types, and the device.
Weights are not in it. Graphs that are compiled together share one artifact. A second digest in the name is that of the
bytes: MAX would run damaged ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from max.driver import Device
from max.engine import CompiledModel
from max.experimental.nn import Module
from max.graph import TensorType

from max_zimage import graphs
from max_zimage.graphs.cpu import InnerLoop, instructions
from max_zimage.graphs.kernel_library import KERNELS
from max_zimage.host.folders import artifact_folder, problem
from max_zimage.progress import note

_LONGEST_NAMES = 120  # characters; file systems take names of 255 bytes, digests included
# Artifacts; one is 0.1 to 50 MB. A checkpoint has some on a CPU and up to 53 on a GPU, 29 of them for exact tiles.
_KEPT = 128
_SCRATCH_PREFIX = ".max_zimage-"
# Files of writers, and the seconds without a change after which an unlocked one has none: a writer locks its file at
# once. Those of the second pattern, from versions that kept no digest of an artifact's bytes, have no lock.
_SCRATCH = {f"{_SCRATCH_PREFIX}????????.part": 10.0, "tmp????????.part": 3600.0}
_CHUNK = 2**20
_WAY_OUT = "set MAX_ZIMAGE_CACHE to a folder with room"
_SOURCES = Path(graphs.__file__).resolve().parent


def artifact_name(names: Sequence[str], keys: Iterable[str]) -> str:
    """What the artifact of graphs that are compiled together is called, before the digest of its bytes.

    Args:
        names: The graphs' names.
        keys: Their `artifact_key`s.
    """
    digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
    together = "+".join(names)
    return f"{together if len(together) <= _LONGEST_NAMES else f'{names[0]}+{len(names) - 1}'}-{digest}"


def artifact_key(
    name: str,
    spec: object,
    module: Module[..., Any],
    input_types: Iterable[TensorType],
    device: Device,
    *,
    weights_in_place: bool = False,
    loop: InnerLoop,
) -> str:
    """Digest of all that a compiled graph depends on.

    Args:
        name: The graph's name.
        spec: The frozen dataclass that the Module was made from; its `repr` says every number that the graph contains.
        module: The Module.
        input_types: Its `input_types()`.
        device: Where the graph runs.
        weights_in_place: Whether it reads its weights on the device; see `graphs.layers.trace`.
        loop: In which way it multiplies bfloat16; see `graphs.cpu`.

    Returns:
        Hexadecimal digits.
    """
    parameters = [f"{parameter} {tensor.dtype} {list(tensor.shape)}" for parameter, tensor in module.parameters]
    parts = [version("max"), sources_digest(), name, repr(spec), *parameters, *map(repr, input_types), _target(device)]
    parts += [loop, "weights in place"] if weights_in_place else [loop]
    return hashlib.sha256(chr(0).join(parts).encode()).hexdigest()


def save(model: CompiledModel, name: str) -> None:
    """Keep an artifact, and drop those that were not used for longest.

    Whatever goes wrong with it is no error: the graphs are compiled, only not kept, which is said once.
    """
    try:
        folder = write(model, name).parent
        for old in sorted(folder.glob("*.mef"), key=_used, reverse=True)[_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _say_once(f"{error}; every start will compile again")


def write(model: CompiledModel, name: str) -> Path:
    """Write an artifact, whole or not at all, and to the disk itself before it gets its name.

    Args:
        model: The compiled graphs.
        name: From `artifact_name`.

    Returns:
        Where it is.

    Raises:
        OSError: If it cannot be written; says why, and what to do.
    """
    folder = artifact_folder()
    if folder is None:
        raise OSError(f"compiled graphs cannot be kept, for this user has no home; {_WAY_OUT}")
    try:
        with scratch(folder) as (handle, written):
            try:
                model.export_mef(written)
            except Exception as error:  # MAX's types for what the system says are its own
                raise OSError(str(error)) from error
            path = folder / f"{name}.{_digest(name, written)}.mef"
            os.fsync(handle)
            os.replace(written, path)  # a reader sees the whole file or none
        _sync_folder(folder)
        for other in (folder / f"{name}.mef", *folder.glob(f"{glob.escape(name)}.*.mef")):
            if other != path and not other.is_dir():
                other.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"compiled graphs cannot be kept in {folder}: {error.strerror or error}; {_WAY_OUT}") from error
    return path


def check_writable() -> None:
    """Check that artifacts can be kept, before what makes them takes minutes.

    Raises:
        ValueError: If the folder cannot be made or written to.
    """
    folder = artifact_folder()
    if folder is None:
        raise ValueError("artifacts have no place, for this user has no home; set MAX_ZIMAGE_CACHE to a folder")
    if said := problem(folder):
        raise ValueError(f"artifacts go to {folder}, which fails: {said}; set MAX_ZIMAGE_CACHE to a folder")


def find(name: str) -> Path | None:
    """An artifact whose bytes are those that were written; marks it as used.

    MAX runs what is in it, whatever that is, so a damaged one never gets as far: it is dropped.

    Args:
        name: From `artifact_name`.

    Returns:
        Where it is; None if there is none that is whole.
    """
    folder = artifact_folder()
    if folder is None:
        return None
    try:
        _drop_remains(folder)
        candidates = sorted(folder.glob(f"{glob.escape(name)}.*.mef"))
    except OSError:
        return None
    for path in candidates:
        try:
            if path.name == f"{name}.{_digest(name, path)}.mef":
                with contextlib.suppress(OSError):  # one may read and not write where others keep
                    os.utime(path)
                return path
            path.unlink()
            _say_once(f"{path} was damaged; its graphs are compiled again")
        except OSError as error:
            _say_once(f"{path} cannot be read: {error.strerror or error}; its graphs are compiled again")
    return None


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[tuple[int, Path]]:
    """A file to write to, for a folder: locked as long as its writer lives; gone at the end unless it was renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=folder, prefix=_SCRATCH_PREFIX, suffix=".part")
    try:
        _lock(handle)
        yield handle, Path(path)
    finally:
        os.close(handle)
        Path(path).unlink(missing_ok=True)


def _drop_remains(folder: Path) -> None:
    """Remove what writers that were killed have left: the system takes a lock from a process that has ended."""
    for path, age in [(path, age) for pattern, age in _SCRATCH.items() for path in folder.glob(pattern)]:
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if time.time() - os.fstat(handle).st_mtime > age and _lock(handle):
                    path.unlink()
            finally:
                os.close(handle)
        except OSError:  # another process was first, or another user's
            continue


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has it, or the file system has no locks
        return False
    return True


def _digest(name: str, path: Path) -> str:
    """Digest of an artifact's bytes and of what it is for, so that one under another's name is found out too."""
    with path.open("rb") as stream:
        digest = hashlib.blake2b(f"{name}{chr(0)}".encode(), digest_size=16)
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Have the system write a new name to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot, and keep the file all the same
            os.fsync(handle)
    finally:
        os.close(handle)


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    note(text)


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process dropped it
        return 0.0


@lru_cache(maxsize=1)
def sources_digest() -> str:
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
