"""The folder for temporary files, which may be swept while a process runs for weeks."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def make_sure() -> None:
    """Make this process's folder for temporary files again if it is gone; MAX compiles kernels into it.

    Raises:
        OSError: If it cannot be made.
    """
    folder = Path(tempfile.gettempdir())
    if not folder.exists():
        restore(folder)


def restore(path: Path) -> None:
    """Make a folder again, for this user alone.

    Raises:
        PermissionError: If something else is in its place by now.
        OSError: If it cannot be made.
    """
    os.makedirs(path.parent, 0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{path}: this server's folder was removed, and somebody else has put something there")
