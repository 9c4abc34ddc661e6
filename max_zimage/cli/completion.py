"""`max-zimage completion`: a script that completes commands, flags, their values and files in a shell.

Reference: shtab, which writes it from the parser; reference/scale-and-ux.md section 13.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from max_zimage.request.fields import ROWS
from max_zimage.request.kinds import Choice

SHELLS = ("bash", "zsh", "tcsh", "fish")
_FILES = frozenset({"FILE", "PICTURE", "INPUT", "PATH"})
_FOLDERS = frozenset({"DIR", "MODEL", "FOLDER"})
_WORDS = {
    "--device": ("auto", "cpu", "gpu", "gpu:0", "gpu:1"),
    "--target": ("cpu", "cuda:sm_90a", "cuda:sm_100a", "hip:gfx942"),
    "--step-cache": ("first_block", "taylorseer"),
    "--quantize": (
        "transformer=int8",
        "text_encoder=q4",
        "transformer=int8,text_encoder=int8",
        "transformer=int8,text_encoder=q4",
    ),
}
"""Values that a flag may have among others."""


def add_completion(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command.

    Args:
        commands: Where to.
    """
    parser = commands.add_parser(
        "completion",
        allow_abbrev=False,
        help="print a script that completes commands, flags, values and files in a shell",
        description="Print a script for a shell. Where it looks for such scripts, the examples have it.",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    parser.set_defaults(debug=False)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script.

    Args:
        parser: The whole command line's, which is of no use for parsing afterwards.
        shell: One of `SHELLS`.
    """
    import shtab  # only here: a command line without it still draws

    for action in _actions(parser):
        complete(action)
    return shtab.complete(parser, shell)


def complete(action: argparse.Action) -> None:
    """Say what completes an argument's value: words, where some are known, files or folders."""
    import shtab

    words = [word for flag in action.option_strings for word in (*_WORDS.get(flag, ()), *_choices().get(flag, ()))]
    if words and action.choices is None:
        action.choices = words
    named = action.metavar if isinstance(action.metavar, str) else ""
    kind = named.partition("[")[0].partition(":")[0]
    if named in _FOLDERS or action.dest == "model":
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif kind in _FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _choices() -> dict[str, tuple[str, ...]]:
    """Flags of request fields that take one of some words."""
    return {
        flag: row.kind.words
        for row in ROWS.values()
        if row.flag is not None and isinstance(row.kind, Choice)
        for flag in (row.flag.name, *row.flag.others)
    }


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action
