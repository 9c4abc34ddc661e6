"""The folders that the engine and MAX write to, and how to do without them: nothing that is kept is worth a picture.

compiled graphs      MAX_ZIMAGE_CACHE, or max_zimage in the user's cache folder; without it, compiled at every start;
                     and the compiled package of kernels; without it, compiled in every process that traces graphs
MAX's own cache      where MAX finds a place; without it, graphs compile a little slower
kernels to compile   the folder for temporary files, or another one that has room; nothing compiles without it
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from max import _core

_CACHE_VARIABLE = "MODULAR_CACHE_DIR"
_NOWHERE = "/dev/null/none"  # MAX takes a folder that cannot be made for one to keep nothing in
_MAX_ROOM = 256 * 2**20  # bytes that MAX's cache may want for one module; the largest seen took 130 MB
_KERNELS_ROOM = 8 * 2**20  # the project's kernels, compiled, are 0.2 MB
_NO_ROOM = re.compile(
    r"filesystem cache|available space|could not be created|no space left|file too large|read-only file system|"
    r"quota exceeded|input/output error|sigxfsz",
    re.IGNORECASE,
)
_OTHER_TEMPORARY = ("/dev/shm", "/var/tmp")


def artifact_folder() -> Path | None:
    """Where compiled graphs are kept: the folder MAX_ZIMAGE_CACHE, or else one in the user's cache folder.

    Returns:
        The folder, which need not exist; None for a user who has no home.
    """
    if given := os.environ.get("MAX_ZIMAGE_CACHE"):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "max_zimage"
    try:
        return Path.home() / ".cache" / "max_zimage"
    except RuntimeError:  # no HOME, and no entry in the list of users, as with `docker run --user 12345`
        return None


def problem(folder: Path, room: int = 0) -> str | None:
    """Why a folder cannot be written to.

    Args:
        folder: Made if it does not exist.
        room: Bytes that should be free in it, and that a file may have.

    Returns:
        A few words, or None if it can.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return error.strerror or str(error)
    if free < room:
        return f"{free / 2**20:.0f} MiB are free"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < room:
        return f"files may have {limit / 2**20:.1f} MiB (ulimit -f)"
    return None


@contextmanager
def room_to_compile(*, max_cache: bool = True) -> Iterator[None]:
    """Let MAX compile where its cache or the folder for temporary files cannot be written to or are full.

    MAX gives a compile up for what it cannot keep of it, and the kernels are compiled into a temporary file.

    Args:
        max_cache: Whether MAX's own cache may be used if it seems to have room.
    """
    with ExitStack() as stack:
        stack.enter_context(_temporary_folder())
        if not max_cache or max_cache_problem() is not None:
            stack.enter_context(_variable(_CACHE_VARIABLE, _elsewhere(stack)))
        yield


def no_room(error: BaseException) -> bool:
    """Whether a compile failed for what could not be written, as far as MAX's words tell."""
    said = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    return _NO_ROOM.search(" ".join(said)) is not None


def max_cache_problem() -> str | None:
    """Why MAX's own cache cannot be written to, in a few words; None if it can."""
    if given := os.environ.get(_CACHE_VARIABLE):
        return None if given == _NOWHERE else problem(Path(given), _MAX_ROOM)
    found = _core.engine.max_cache_dir()  # dirties nothing but may make the folder
    return "there is none" if found is None else problem(Path(found), _MAX_ROOM)


def _elsewhere(stack: ExitStack) -> str:
    """A folder for MAX's cache that is gone after the compile, or none: MAX writes lines to stderr if it has none."""
    for folder in _temporary_folders():
        if problem(folder, _MAX_ROOM) is None:
            return stack.enter_context(tempfile.TemporaryDirectory(prefix="max-zimage-compile-", dir=folder))
    return _NOWHERE


@contextmanager
def _temporary_folder() -> Iterator[None]:
    """The folder for temporary files, in which the kernels are compiled, or another one while that is full."""
    before = tempfile.tempdir
    for folder in _temporary_folders():
        if problem(folder, _KERNELS_ROOM) is None:
            tempfile.tempdir = str(folder)
            break
    try:
        yield
    finally:
        tempfile.tempdir = before


def _temporary_folders() -> list[Path]:
    try:
        first = [Path(tempfile.gettempdir())]
    except FileNotFoundError:  # no folder that Python tries can be written to
        first = []
    kept = artifact_folder()
    return [*first, *map(Path, _OTHER_TEMPORARY), *([kept] if kept is not None else [])]


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
