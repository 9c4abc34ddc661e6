"""Which arguments a command line gives, and which it leaves at their defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_SHOWN = ("generate", "batch", "encode", "info", "compile", "profile", "serve")
"""Commands whose arguments `max-zimage config show` can take in."""
_VALUED = ("--config", "--profile")


def given_by(parser: argparse.ArgumentParser, words: Sequence[str]) -> frozenset[str]:
    """Where argparse leaves what is given.

    Args:
        parser: That takes the words; it is of no use afterwards.
        words: The command line.
    """
    for action in (each for one in (parser, *_commands(parser).values()) for each in one._actions):
        action.default = argparse.SUPPRESS
    return frozenset(vars(parser.parse_args(words)))


def command_of(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    return _commands(parser)[name]


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `config show`, and those of the command behind it; of other commands all words, and none.

    >>> split(["config", "show", "--profile", "serve", "generate", "--steps", "4"])
    (['config', 'show', '--profile', 'serve'], ['generate', '--steps', '4'])
    """
    if list(words[:1]) != ["config"]:
        return list(words), []
    at = (index for index, word in enumerate(words) if word in _SHOWN and words[index - 1] not in _VALUED)
    place = next(at, len(words))
    return list(words[:place]), list(words[place:])


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    action = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return dict(action.choices)
