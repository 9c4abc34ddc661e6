"""A fleet from its start to its end, on a cluster that is there or on one of this machine."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray import serve

from max_zimage.serving.ray_serve.settings import LOCAL, FleetSettings
from max_zimage.serving.settings import ServerSettings

NAME = "max-zimage"
"""Of the application in Ray Serve."""

_log = logging.getLogger("max_zimage.serving")
_OBJECTS = 256 * 2**20  # bytes of shared memory for what is larger than 100 KiB: features, pictures that are sent in
_SMALL_SYSTEM = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def run(settings: ServerSettings, fleet: FleetSettings, application: Callable[[], Any]) -> int:
    """Serve until a signal ends it.

    Args:
        settings: Of each server; the port is that of Ray's proxy.
        fleet: How many there are, and where.
        application: Makes what is run, once Ray is there.

    Returns:
        The exit code.

    Raises:
        ConnectionError: If there is no such cluster.
        RuntimeError: If the replicas cannot be started.
    """
    with ExitStack() as stack:
        stack.enter_context(cluster(fleet))
        serve.start(proxy_location="HeadOnly", http_options={"host": settings.host, "port": settings.port})
        stack.callback(_put_down, fleet)
        serve.run(application(), name=NAME, route_prefix="/", blocking=False)
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):  # before, they end the start
            signal.signal(number, lambda *_: ended.set())  # Ray would end the process amid what is drawn
        _log.info("ready")
        ended.wait()
        _log.info("ending; work in flight has %g s", settings.shutdown_seconds)
    return 0


@contextmanager
def cluster(fleet: FleetSettings) -> Iterator[None]:
    """Ray, joined or started; what was started is gone afterwards, with its files.

    Args:
        fleet: Where, and how many processors it is to count.

    Raises:
        ConnectionError: If there is no such cluster.
    """
    os.environ.update({name: value for name, value in _SMALL_SYSTEM.items() if name not in os.environ})
    if fleet.address != LOCAL:
        ray.init(address=fleet.address, log_to_driver=True)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Sockets lie there too, whose paths may have a hundred characters.
    folder = tempfile.mkdtemp(prefix="max-zimage-ray-", dir="/tmp")
    counted = (fleet.max_replicas + fleet.encoders) * fleet.cpus + 1
    try:
        ray.init(
            address="local",
            num_cpus=max(int(counted), os.cpu_count() or 1),
            object_store_memory=_OBJECTS,
            include_dashboard=False,
            _temp_dir=folder,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _put_down(fleet: FleetSettings) -> None:
    """End the application; of a cluster that others use, nothing else."""
    serve.delete(NAME)
    if fleet.address == LOCAL:
        serve.shutdown()  # type: ignore[no-untyped-call]
