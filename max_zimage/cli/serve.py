"""`max-zimage serve`: the flags of a server, checked, and its life."""

from __future__ import annotations

import argparse
import logging
import resource
import socket

from max_zimage.cli.errors import BadInput
from max_zimage.cli.fleet import fleet_of, serve_fleet
from max_zimage.cli.opening import opened
from max_zimage.cli.server_settings import settings_of
from max_zimage.host.ray_clusters import LOCAL

_OTHER_FILES = 512
"""Files that a server has open besides its connections: those that it is about to refuse, models, pipes, libraries."""


def serve(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit code.

    Raises:
        BadInput: If the model, the device, the key file or the port does not do; nothing is loaded before.
    """
    settings = settings_of(arguments)
    fleet = fleet_of(arguments, settings)
    if fleet is None or fleet.address == LOCAL:  # elsewhere it is another machine's
        _check_port(settings.host, settings.port)
    if fleet is None:
        _check_files(settings.connections.connections)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if fleet is not None:
        return serve_fleet(arguments, settings, fleet)
    found = opened(arguments, settings)
    from max_zimage.serving.server import run

    return run(found)


def _check_port(host: str, port: int) -> None:
    """Say at once that the port is taken, and not after minutes of loading."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except (OSError, OverflowError) as error:
        raise BadInput(f"--host {host} --port {port}: {error}; choose another") from error


def _check_files(connections: int) -> None:
    """Have the system allow as many open files as connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BadInput(
            f"--max-connections {connections} needs {needed} open files, this system allows {hard} (ulimit -Hn); "
            f"{max(1, hard - _OTHER_FILES)} would do, or have the limit raised"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
