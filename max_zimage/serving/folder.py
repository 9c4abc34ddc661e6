"""The folder of a server's temporary files: its own, and gone when the server is, also when it was killed.

MAX puts its sockets and the compiled kernels there. Nobody else may look inside. Folders in the system's place for
temporary files are swept by age, so nothing relies on it to stay: it is made again before it is used.

A lock on the folder says that its server lives. The system lets go of it when that ends, however it does, and
systemd-tmpfiles leaves alone what is locked.

Reference: flock(2); tmpfiles.d(5), Age.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Self

from max_zimage.host.temporary import restore

PREFIX = "max-zimage-server-"
_NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}")
_MARK = ".max-zimage-server"
_LONGEST = 60  # characters that leave room for the name of a socket: its whole path may have 103 on macOS


class ServerFolder:
    """One server's folder, held from its making to `close`.

    Attributes:
        path: Where it is.
    """

    def __init__(self) -> None:
        """Make it, and remove those of servers that are gone.

        Raises:
            OSError: If there is no place for it.
        """
        base = place()
        remove_stale(base)
        self._held: int | None = None
        while self._held is None:  # another server may take an empty folder for a stale one, before it is locked
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            self._hold()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def restore(self) -> None:
        """Make it again if it was swept, and keep it young.

        Raises:
            OSError: If that cannot be done.
        """
        restore(self.path)
        if self._held is None or not _same(self._held, self.path):
            self._let_go()
            self._hold()
        with contextlib.suppress(OSError):
            (self.path / _MARK).touch()
            for each in (self.path, *self.path.rglob("*")):
                os.utime(each, follow_symlinks=False)

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._let_go()

    def _hold(self) -> None:
        """Lock it, unless it has been removed meanwhile."""
        try:
            held = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        with contextlib.suppress(OSError):  # a file system without locks: others then leave it alone
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _same(held, self.path):
            os.close(held)
            return
        self._held = held
        (self.path / _MARK).touch()

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def place() -> Path:
    """Where the folder goes: the system's place for temporary files, or /tmp where a socket's path would be too long.

    Raises:
        FileNotFoundError: If there is none that can be written to.
    """
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) + len(PREFIX) + 9 <= _LONGEST else Path("/tmp")


def remove_stale(base: Path) -> list[Path]:
    """Remove folders whose server is gone: of this user, made by this class, and not locked.

    Args:
        base: Where they are.

    Returns:
        What was removed.
    """
    removed = []
    for path in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if not _NAME.fullmatch(path.name) or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            if _remove_unlocked(path):
                removed.append(path)
    return removed


def _remove_unlocked(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (path / _MARK).exists():
            shutil.rmtree(path)
        else:
            path.rmdir()  # what is not marked goes only if it is empty: somebody may have chosen the same name
    finally:
        os.close(handle)
    return True


def _same(handle: int, path: Path) -> bool:
    """Whether an open folder is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False
