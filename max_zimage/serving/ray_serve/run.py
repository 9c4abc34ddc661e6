"""A fleet from its start to its end, on a cluster that is there or on one of this machine."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client

from max_zimage.host.ray_clusters import LOCAL, ray_cluster
from max_zimage.serving.ray_serve.settings import FleetSettings
from max_zimage.serving.settings import ServerSettings

NAME = "max-zimage"
"""Of the application in Ray Serve."""

_log = logging.getLogger("max_zimage.serving")
_OBJECTS = 256 * 2**20  # bytes of shared memory for what is larger than 100 KiB: features, pictures that are sent in


class OtherAddressError(Exception):
    """Ray Serve listens elsewhere already."""


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
        OtherAddressError: If Ray Serve runs there already, at another address than that of the settings.
        RuntimeError: If the replicas cannot be started.
    """
    with ExitStack() as stack:
        stack.enter_context(cluster(fleet))
        check_address(settings.host, settings.port)
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
    counted = int(fleet.most * fleet.counted + 1)
    with ray_cluster(ray, fleet.address, processors=counted, object_bytes=_OBJECTS):
        yield


def check_address(host: str, port: int) -> None:
    """See that a Ray Serve which runs already listens where it is to: it takes no other address until it has ended.

    Args:
        host: That is asked for.
        port: The same.

    Raises:
        OtherAddressError: If it does not.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    there = client.http_config
    if (there.host, there.port) != (host, port):
        raise OtherAddressError(
            f"--host {host} --port {port}: Ray Serve runs on this cluster already and listens at {there.host}, port "
            f"{there.port}; give those, or end it first (serve shutdown), which ends all of its applications"
        )


def _put_down(fleet: FleetSettings) -> None:
    """End the application; of a cluster that others use, nothing else."""
    serve.delete(NAME)
    if fleet.address == LOCAL:
        serve.shutdown()  # type: ignore[no-untyped-call]
