"""What `max-zimage doctor` looks at of folders, disks, the hub's cache and the port.

Reference: reference/scale-and-ux.md sections 12 and 13; max_zimage.host.folders for what each folder is for.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from max_zimage.diagnosis.findings import Finding, fault, ok, warning
from max_zimage.host.folders import artifact_folder, max_cache_problem, problem
from max_zimage.host.sizes import sized
from max_zimage.host.words import counted

_ROOM = 256 * 2**20
"""Bytes that compiled graphs of one checkpoint want at least."""
_COMFORT = 4 * 2**30
"""Bytes below which a disk that graphs are kept on is soon full."""
_KERNELS = 8 * 2**20
PUBLISHED_BYTES = 33e9
"""Of a published checkpoint on the hub."""


def graph_cache() -> Finding:
    """The folder for compiled graphs."""
    name, folder = "compiled graphs", artifact_folder()
    remedy = "set MAX_ZIMAGE_CACHE to a folder that can be written to and has room; every start compiles otherwise"
    if folder is None:
        return fault(name, "there is no folder: this user has no home", remedy)
    if (why := problem(folder, _ROOM)) is not None:
        if kept := len(list(folder.glob("*.mef"))) if folder.is_dir() else 0:  # as in a container's image
            return warning(name, f"{folder}: {why}; the {kept} that are there are used", remedy)
        return fault(name, f"{folder}: {why}", remedy)
    free = shutil.disk_usage(folder).free
    files = [path for path in folder.rglob("*") if path.is_file()]
    taken = sized(sum(_bytes(path) for path in files))
    found = f"{folder}: {counted(len(files), 'file')}, {taken}; {sized(free)} are free"
    if free < _COMFORT:
        return warning(name, found, "make room, or set MAX_ZIMAGE_CACHE to a folder on another disk")
    return ok(name, found)


def max_cache() -> Finding:
    """MAX's own cache."""
    why = max_cache_problem()
    if why is None:
        return ok("MAX's cache", "can be written to")
    return warning("MAX's cache", why, "set MODULAR_CACHE_DIR to a folder with room; graphs compile slower otherwise")


def temporary_folder() -> Finding:
    """The folder for temporary files, in which kernels are compiled."""
    name, named = "temporary files", os.environ.get("TMPDIR")
    remedy = "set TMPDIR to a folder that exists, can be written to and has room"
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError:
        return fault(name, "no folder that Python tries can be written to", remedy)
    if (why := problem(folder, _KERNELS)) is not None:
        return fault(name, f"{folder}: {why}; kernels are compiled there", remedy)
    if named and not Path(named).is_dir():
        return warning(name, f"TMPDIR is {named}, which is no folder; {folder} is used in its place", remedy)
    return ok(name, f"{folder}: {sized(shutil.disk_usage(folder).free)} are free")


def hub() -> Iterator[Finding]:
    """The cache of the Hugging Face hub, its token, and whether it may be asked."""
    from huggingface_hub import constants, get_token

    folder = Path(constants.HF_HUB_CACHE)
    if (why := problem(folder)) is not None:
        remedy = "set HF_HOME to a folder that can be written to; models that are named by a hub id cannot be fetched"
        yield warning("hub cache", f"{folder}: {why}", remedy)
    else:
        free = shutil.disk_usage(folder).free
        found = f"{folder}: {sized(free)} are free"
        remedy = f"a published checkpoint takes {sized(PUBLISHED_BYTES)}; make room, or set HF_HOME to a larger disk"
        yield ok("hub cache", found) if free > PUBLISHED_BYTES else warning("hub cache", found, remedy)
    if constants.HF_HUB_OFFLINE:
        remedy = "unset HF_HUB_OFFLINE to fetch models that are not in the cache"
        yield warning("hub", "HF_HUB_OFFLINE is set: only what is in the cache is found", remedy)
    else:
        yield ok("hub", f"may be asked, {'with' if get_token() else 'without'} a token")


def port(number: int) -> Finding:
    """Whether a server could listen."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", number))
        except OSError as error:
            found = f"{number} on 127.0.0.1 cannot be taken: {error.strerror}"
            return warning("port", found, "end what listens there, or give `max-zimage serve` another --port")
    return ok("port", f"{number} on 127.0.0.1 is free")


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone meanwhile
        return 0
