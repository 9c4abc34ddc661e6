"""The flags of `max-zimage doctor`; apart from the command."""

from __future__ import annotations

import argparse
from typing import Any

from max_zimage import embedded
from max_zimage.serving.settings import ServerSettings


def add_doctor(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: Flags that it has in common with others.
    """
    parser = commands.add_parser(
        "doctor",
        parents=[shared],
        allow_abbrev=False,
        help="what would fail on this machine, and what to do about it",
        description="Look at Python, packages, folders, disks, devices, libraries, memory, the hub's cache, the port "
        "and a checkpoint. Each line is ok, a warning or a fault, with what to do; a fault makes the exit code 1. No "
        "weight is read and nothing is fetched.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help=f"a directory or a hub id; the embedded {embedded.NAME} if not given"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    port = ServerSettings.port
    parser.add_argument("--port", type=int, metavar="N", default=port, help=f"of serve; {port} if not given")
