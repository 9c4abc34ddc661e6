"""The flags of `max-zimage config`; apart from the command."""

from __future__ import annotations

import argparse
from typing import Any

from max_zimage.cli.model_flags import add_configuration


def add_config(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: Flags that it has in common with others.
    """
    parser = commands.add_parser(
        "config",
        parents=[shared],
        allow_abbrev=False,
        help="what is configured, and where; an example of a file",
        description="show prints what is in force and where each value comes from; a command behind it, as in "
        "`config show generate --steps 4`, with its flags. example prints a file with all keys, as comments.",
    )
    parser.add_argument("what", choices=("show", "example"), metavar="WHAT", help="show, or example")
    add_configuration(parser)
