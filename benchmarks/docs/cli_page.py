"""The flags of every command for docs/cli.md, from the parser itself: `python -m benchmarks.docs.cli_page`.

The page's own words stand before the marker, the flags behind it. A test holds the page equal to the parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.docs.written import WrittenPage, cell


def _sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return (_section(f"{parser.prog} {name}", command) for name, command in commands.choices.items())


def _section(name: str, command: argparse.ArgumentParser) -> str:
    """One command: what it does, then a table of flags for each group that its `--help` shows."""
    lines = [f"## {name}\n", f"{cell(command.description or '')}\n"]
    if command.epilog:
        lines += ["```sh", *(line.strip().replace("%%", "%") for line in command.epilog.splitlines()[1:]), "```\n"]
    for group in command._action_groups:
        rows = [_row(action, name) for action in group._group_actions if action.help != argparse.SUPPRESS]
        if rows:
            title = (group.title or "").capitalize()
            lines += [f"| {title} | |\n|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(action: argparse.Action, prog: str) -> str:
    value = "" if action.nargs == 0 else _value(action)
    named = [f"`{flag}{f' {value}' if value else ''}`" for flag in action.option_strings] or [f"`{value}`"]
    said = (action.help or "") % (vars(action) | {"prog": prog}) if "%" in (action.help or "") else action.help or ""
    shown = action.default not in (None, False, argparse.SUPPRESS, []) and "default" not in said
    default = f" (default: `{action.default}`)" if shown and action.nargs != 0 else ""
    return f"| {', '.join(named)} | {cell(said)}{default} |"


def _value(action: argparse.Action) -> str:
    """What stands for the flag's value."""
    if isinstance(action.metavar, str):
        return f"[{action.metavar}]" if action.nargs == "?" and action.option_strings else action.metavar
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


PAGE = WrittenPage(file="cli.md", module="benchmarks.docs.cli_page", lines=_sections)

if __name__ == "__main__":
    raise SystemExit(PAGE.write())
