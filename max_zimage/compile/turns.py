"""One process at a time compiles an artifact: the others wait for it, and find the artifact where it is kept.

    file `.max_zimage.lock` in the folder of the artifacts, of which every artifact's name locks one byte

The system takes a lock from a process that ends, in whatever way. Where files cannot be written or locked nobody waits,
and processes that start together all compile, as they would with no folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator

from max_zimage.host.folders import artifact_folder
from max_zimage.progress import note

FILE = ".max_zimage.lock"
_ASK_SECONDS = 0.2


@contextlib.contextmanager
def turn(name: str) -> Iterator[None]:
    """Wait until no other process compiles what this one is about to.

    Args:
        name: From `max_zimage.compile.artifacts.artifact_name`. One thread of a process at a time may be here.
    """
    with contextlib.ExitStack() as stack:
        if (handle := _opened()) is not None:
            stack.callback(os.close, handle)  # which gives the lock up
            _lock(handle, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))
        yield


def _opened() -> int | None:
    folder = artifact_folder()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError:
        return None


def _lock(handle: int, place: int) -> None:
    said = False
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            return
        except (BlockingIOError, PermissionError):  # the two ways in which systems say that another process has it
            if not said:
                note("another process compiles the same graphs; waiting for it")
                said = True
            time.sleep(_ASK_SECONDS)
        except OSError:  # the file system has no locks
            return
