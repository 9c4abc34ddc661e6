"""In which line of a TOML file a key stands: what `tomllib` knows and does not say.

Only for messages: a key that is written in a way that is not looked for here has no line.
"""

from __future__ import annotations

import re

_TABLE = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?$")
_KEY = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_MANY = ('"""', "'''")


def lines_of(text: str) -> dict[tuple[str, ...], int]:
    r"""Path of a table or a key -> its line, counted from 1.

    >>> lines_of("[a.b]\nc = 1\nd.e = 2\n") == {("a", "b"): 1, ("a", "b", "c"): 2, ("a", "b", "d", "e"): 3}
    True
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    inside = ""  # a text of several lines
    for number, line in enumerate(text.splitlines(), 1):
        if inside:
            inside = "" if inside in line else inside
            continue
        if header := _TABLE.match(line):
            table = _path(header[1])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *_path(key[1])), number)
            inside = next((mark for mark in _MANY if line.count(mark) == 1), "")
    return found


def _path(written: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in written.split("."))
