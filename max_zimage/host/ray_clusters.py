"""A Ray cluster, joined or started on this machine.

What is started here listens on this machine's loopback address alone, has no dashboard, tells nobody that it is used,
keeps its files in a folder of its own, and is gone afterwards. The folder of a process that was killed is removed by
the next one that starts a cluster.

Reference: ray/_private/services.py, `get_node_ip_address`; ray/_private/ray_constants.py, `ENABLE_RAY_CLUSTER`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCAL = "local"
"""The address of a cluster that is to be started."""

_PREFIX, _OWNER = "max-zimage-ray-", "owner"
_PLACE = Path("/tmp")  # sockets lie there too, whose paths may have a hundred characters
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Says on every system that no other machine joins. Ray takes an address of loopback that it is given for the machine's
own, and has its parts listen on all addresses then."""


def before_ray(address: str) -> None:
    """Leave in the environment what Ray reads when it is imported: to be called before.

    Args:
        address: As of `ray_cluster`.
    """
    for name, value in (_QUIET | (_LOOPBACK if address == LOCAL else {})).items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def ray_cluster(ray: Any, address: str, *, processors: int, object_bytes: int, **more: Any) -> Iterator[None]:
    """Be connected to a cluster.

    Args:
        ray: The module, which is an optional package; imported after `before_ray`.
        address: Of one that is there, or `LOCAL`.
        processors: That one of this machine counts at least, whatever there are: as many as its actors ask for.
        object_bytes: Shared memory of one of this machine.
        more: For `ray.init`, in both cases.

    Raises:
        ConnectionError: If there is no such cluster.
    """
    with contextlib.ExitStack() as stack:
        if address == LOCAL:
            more |= {
                "num_cpus": max(processors, os.cpu_count() or 1),
                "object_store_memory": object_bytes,
                "include_dashboard": False,
                "_temp_dir": str(stack.enter_context(_own_folder())),
            }
        stack.callback(ray.shutdown)
        ray.init(address=address, **more)
        yield


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PLACE))
    fresh = folder / f"{_OWNER}.new"
    handle = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        fresh.rename(folder / _OWNER)  # only now may another process ask whether it is locked
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _sweep() -> None:
    """Remove folders of processes that have ended without removing them."""
    for owner in _PLACE.glob(f"{_PREFIX}*/{_OWNER}"):
        with contextlib.suppress(OSError):  # somebody else's, in use, or gone by now
            if owner.stat().st_uid != os.getuid():
                continue
            handle = os.open(owner, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(owner.parent, ignore_errors=True)
            finally:
                os.close(handle)
