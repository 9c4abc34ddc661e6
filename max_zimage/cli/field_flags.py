"""Flags that stand for fields of a request, made from the table of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from max_zimage.request.fields import ROWS
from max_zimage.request.kinds import Kind, Switch
from max_zimage.request.row import Group, Row

_BELOW_ZERO = re.compile(r"-\d[\d.,:eE+-]*")


class _Adds(Protocol):
    def add_argument(self, *names: str, **options: Any) -> object: ...


def add_flag(parser: _Adds, name: str, help: str | None = None) -> None:
    """Add the flag of a field.

    Args:
        parser: Or a group of one.
        name: The field.
        help: In place of what the table says, where a command means something else by it.

    Raises:
        KeyError: If the field has no flag.
    """
    row = ROWS[name]
    if row.flag is None:
        raise KeyError(f"{name} has no flag")
    options: dict[str, Any] = {"help": help or row.flag.help}
    if row.kind.plain is bool and row.flag.metavar:  # on with a word behind it, or without
        options |= {"nargs": "?", "const": True, "metavar": row.flag.metavar}
    elif isinstance(row.kind, Switch) and row.kind.is_left_to_checkpoint:  # --no-... says no where it says yes
        options |= {"action": argparse.BooleanOptionalAction}
    elif row.kind.plain is bool:
        options |= {"action": "store_true", "default": None}  # None: not given, and a picture of --from may say it
    else:
        many = row.kind.values
        options["metavar"] = tuple(row.flag.metavar.split()) if many > 1 else row.flag.metavar
        options |= {"nargs": many} if many > 1 else {}
        options |= {"nargs": "?", "const": row.flag.bare} if row.flag.bare else {}
        options |= {"action": "append"} if row.flag.repeated else {}
        options["type"] = row.kind.plain if type(row.kind).of_flag is Kind.of_flag else row.kind.of_flag
    parser.add_argument(row.flag.name, *row.flag.others, **options)


def add_group(parser: argparse.ArgumentParser, title: Group, without: Collection[str] = ()) -> argparse._ArgumentGroup:
    """Add a heading, and under it the flags of all fields that belong there.

    Args:
        parser: Of the command.
        title: The heading.
        without: Fields that the command has not.
    """
    group = parser.add_argument_group(title)
    for name, row in ROWS.items():
        if row.flag is not None and row.flag.group == title and name not in without:
            add_flag(group, name)
    return group


def with_values(argv: Sequence[str]) -> list[str]:
    """Arguments with numbers below 0 joined to their flags: argparse takes several, as -2:0.7,-5:0.3, for a flag.

    >>> with_values(["--hidden-layer", "-2:0.7,-5:0.3", "--quiet"])
    ['--hidden-layer=-2:0.7,-5:0.3', '--quiet']
    """
    flags = {name for row in ROWS.values() if row.flag is not None for name in (row.flag.name, *row.flag.others)}
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] in flags and _BELOW_ZERO.fullmatch(word):
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields whose flags were given, by argument of `GenerationRequest.create`."""
    values = {name: flag_value(arguments, row) for name, row in ROWS.items()}
    return {name: value for name, value in values.items() if value is not None}


def flag_value(arguments: argparse.Namespace, row: Row) -> Any:
    """What a field's flag was given; None if it was not, or if there is none."""
    value = None if row.flag is None else getattr(arguments, row.flag.destination, None)
    return value is not False if row.kind.plain is bool and value is not None else value
