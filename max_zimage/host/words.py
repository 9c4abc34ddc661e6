"""Numbers of things in sentences."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "") -> str:
    """A number and what it counts: `1 file`, `2 files`.

    Args:
        count: How many.
        one: What one of them is called, and what is said of it: "file", "request is waiting".
        many: The same of several, and of none; `one` with an s behind it if not given.
    """
    return f"{count} {one if count == 1 else many or f'{one}s'}"
