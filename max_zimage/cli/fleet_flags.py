"""The flags of `max-zimage serve` that are about replicas on Ray."""

from __future__ import annotations

import argparse

from max_zimage.cli.common import at_least_one


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Add them.

    Args:
        parser: Of the command.
    """
    fleet = parser.add_argument_group("a fleet on Ray Serve (pip install 'max-zimage[ray]')")
    fleet.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="serve from replicas on a Ray cluster: its address, auto for that of this machine, local for one of its "
        "own",
    )
    fleet.add_argument("--replicas", type=at_least_one, metavar="N", help="servers, at least; 1 if not given")
    fleet.add_argument(
        "--max-replicas",
        type=at_least_one,
        metavar="N",
        help="servers, as many as their queues ask for; as many as at least if not given",
    )
    fleet.add_argument(
        "--encoders",
        type=at_least_one,
        metavar="N",
        help="processes that encode prompts for all servers, at least; each does for itself if not given",
    )
    fleet.add_argument(
        "--max-encoders",
        type=at_least_one,
        metavar="N",
        help="such processes, as many as prompts ask for; as many as at least if not given",
    )
    fleet.add_argument(
        "--replica-cpus",
        type=share,
        metavar="X",
        help="processors that Ray counts for each, and that each has for itself where it has no GPU; if not given an "
        "even share of them on a Ray of its own, and elsewhere 1 that is only counted",
    )
    fleet.add_argument(
        "--replica-gpus",
        type=share,
        metavar="X",
        help="GPUs that Ray gives to each; if not given 1, as many as --devices names, and 0 with --device cpu or "
        "where the cluster has none",
    )


def share(text: str) -> float:
    """Read a number of devices, which may be a part of one.

    Raises:
        argparse.ArgumentTypeError: If it is negative or no number.
    """
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number of devices, got {text!r}") from error
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return number
