"""Columns of a job's file: each is a field of a request, by its name as an argument.

What one file cannot say, as arrays of numbers, is no column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from max_zimage.request.fields import ROWS
from max_zimage.request.kinds import Choice, Side, Text, Texts, Whole

_NO_COLUMNS = {
    "latents": "a job draws from seeds",
    "prompt_embeds": "a job draws from prompts",
    "negative_prompt_embeds": "a job draws from prompts",
    "features": "a job draws from prompts",
    "denoising_start": "a job draws whole pictures",
    "denoising_end": "a job draws whole pictures",
    "output_type": "a job makes PNG files; --format says where they lie",
}
"""Fields of a request that a job has not, and why."""

PICTURES = ("image", "mask_image")
"""Fields whose column holds a picture: a path, a URL that fsspec knows, a data URL, or the bytes of a file."""

COLUMNS = tuple(name for name in ROWS if name not in _NO_COLUMNS)
"""All there are, in the order of the table of fields."""


def _other_names() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, row in ROWS.items():
        named = (
            [row.flag.destination, *(each.removeprefix("--").replace("-", "_") for each in row.flag.others)]
            if row.flag
            else []
        )
        named += [row.images.name, *row.images.others] if row.images else []
        found |= {each: name for each in named if name in COLUMNS and each not in ROWS}
    return found


_OTHERS = _other_names()
"""What the command line and HTTP call a field -> its column."""


def problem_of(name: str) -> str | None:
    """Why a column cannot be; None for one that can.

    >>> problem_of("prompts")
    'prompts is no field of a request, the nearest is prompt'
    """
    if name in COLUMNS:
        return None
    if name in _NO_COLUMNS:
        return f"{name} is no column: {_NO_COLUMNS[name]}"
    near = [_OTHERS[name]] if name in _OTHERS else get_close_matches(name, COLUMNS, 1)
    return f"{name[:64]} is no field of a request{f', the nearest is {near[0]}' if near else ''}"


def check_columns(url: str, columns: Collection[str], anywhere: Collection[str], ignored: Collection[str]) -> None:
    """Refuse columns that would do nothing.

    Args:
        url: Of the file.
        columns: Those of all rows, without that of the ids. What single lines have costs those alone.
        anywhere: Those of any row.
        ignored: Those that may be there and do nothing.

    Raises:
        ValueError: With all that are no fields, or are to be ignored and not there.
    """
    problems = [found for name in sorted(columns) if name not in ignored and (found := problem_of(name))]
    if problems:
        raise ValueError(f"{url}: {'; '.join(problems)}. Rename the column, or give --ignore NAME")
    if "prompt" not in anywhere:
        raise ValueError(f"{url} has no column prompt; it has {', '.join(sorted(anywhere)) or 'none'}")
    if absent := sorted(set(ignored) - set(anywhere)):
        raise ValueError(f"--ignore {absent[0]}: {url} has no such column; leave it out")


def values_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Cells of a row as arguments of `GenerationRequest.create`; texts are read as the command line reads them.

    Args:
        fields: Column -> value.
    """
    return {name: _value(name, value) for name, value in fields.items()}


def _value(name: str, value: Any) -> Any:
    kind = ROWS[name].kind
    if isinstance(value, str) and not isinstance(kind, (Text, Texts, Choice)) and name not in PICTURES:
        return kind.read(value)
    if isinstance(kind, (Whole, Side)) and isinstance(value, float) and value.is_integer():
        return int(value)  # tables of numbers with gaps in them keep whole numbers so
    return value
