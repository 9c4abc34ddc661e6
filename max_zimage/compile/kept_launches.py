"""What graphs launch, kept beside their artifacts, so that a list that was made once takes no compiler again.

A list is named by what the artifact of its graph is named by, and by the code that reads it out of what MAX writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path

from max_zimage.compile import kernel_lists, launch_plans
from max_zimage.compile import launches as forms
from max_zimage.compile.artifacts import scratch
from max_zimage.compile.launches import Launches
from max_zimage.host.folders import artifact_folder

_KEPT = 256  # lists; one is 1 to 60 KB
_END = ".launches.json"


def find(graph: str, key: str) -> Launches | None:
    """A list that was kept.

    Args:
        graph: The graph's name.
        key: From `max_zimage.compile.artifacts.artifact_key`.

    Returns:
        The list; None if there is none that is whole.
    """
    path = _path(graph, key)
    if path is None:
        return None
    try:
        digest, _, text = path.read_text(encoding="utf-8").partition("\n")
        if digest != _digest(text):
            return None
        with contextlib.suppress(OSError):  # one may read and not write where others keep
            os.utime(path)
        return Launches.of(json.loads(text))
    except (OSError, UnicodeDecodeError):
        return None


def keep(graph: str, key: str, launches: Launches) -> None:
    """Keep a list, and drop those that were not used for longest; where that fails it is only made again.

    Args:
        graph: The graph's name.
        key: See `find`.
        launches: The list.
    """
    path = _path(graph, key)
    if path is None:
        return
    text = json.dumps(asdict(launches))
    with contextlib.suppress(OSError):
        with scratch(path.parent) as (handle, written):
            os.write(handle, f"{_digest(text)}\n{text}".encode())
            os.replace(written, path)  # a reader sees the whole list or none
        for old in sorted(path.parent.glob(f"*{_END}"), key=_used, reverse=True)[_KEPT:]:
            old.unlink(missing_ok=True)


def _path(graph: str, key: str) -> Path | None:
    folder = artifact_folder()
    digest = hashlib.sha256(f"{key} {_readers()}".encode()).hexdigest()[:32]
    return None if folder is None else folder / f"{graph}-{digest}{_END}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _readers() -> str:
    """Digest of what makes a list of what MAX writes."""
    sources = [Path(module.__file__ or "") for module in (kernel_lists, launch_plans, forms)]
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process dropped it
        return 0.0
