"""The project's Mojo sources, compiled into a package once a machine instead of once a process.

MAX compiles them anew in every process that traces a graph, 11 to 15 s of a slow processor. The package is kept where
compiled graphs are, in a folder named by what decides its contents and by the digest of its bytes; its own name
is inside it, and MAX takes it under no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from max_zimage.compile.artifacts import sources_digest
from max_zimage.host.folders import artifact_folder

PREFIX = "kernels-"
"""What names of their folders begin with."""
_SCRATCH_PREFIX = ".max_zimage-kernels-"
_SCRATCH_SECONDS = 3600.0  # by when whoever began a folder has ended
_KEPT = 4  # one is 0.5 MB


def kept_package(compile: Callable[[], Path]) -> Path:
    """The package that was kept, or else a new one, which is kept if it can be.

    Args:
        compile: Makes it.
    """
    folder = artifact_folder()
    if folder is not None and (found := _find(folder)) is not None:
        return found
    made = compile()
    if folder is not None:
        with contextlib.suppress(OSError):  # the next process compiles it again
            _keep(made, folder)
    return made


def _name() -> str:
    return PREFIX + hashlib.sha256(f"{version('max')} {sources_digest()}".encode()).hexdigest()[:32]


def _find(folder: Path) -> Path | None:
    """The package whose bytes are those that were written; another one is removed."""
    with contextlib.suppress(OSError):
        for place in folder.glob(f"{_name()}.*"):
            for file in place.glob("*.mojoc"):
                if place.suffix == f".{_digest(file)}":
                    with contextlib.suppress(OSError):  # one may read and not write where others keep
                        os.utime(place)
                    return file
            shutil.rmtree(place, ignore_errors=True)
    return None


def _keep(made: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=_SCRATCH_PREFIX))
    try:
        with (scratch / made.name).open("wb") as stream:
            stream.write(made.read_bytes())
            stream.flush()
            os.fsync(stream.fileno())
        scratch.chmod(0o755)  # a folder that others may read is made for its owner alone
        os.rename(scratch, folder / f"{_name()}.{_digest(scratch / made.name)}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in _no_longer_used(folder):
        shutil.rmtree(old, ignore_errors=True)


def _no_longer_used(folder: Path) -> Iterator[Path]:
    ages = {path: time.time() - path.stat().st_mtime for path in folder.glob(f"{PREFIX}*.*") if path.is_dir()}
    yield from sorted(ages, key=lambda path: ages[path])[_KEPT:]
    for path in folder.glob(f"{_SCRATCH_PREFIX}*"):
        if time.time() - path.stat().st_mtime > _SCRATCH_SECONDS:
            yield path


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
