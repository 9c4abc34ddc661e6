"""Paths and URLs of a job, as they are named to processes that may be on another machine."""

from __future__ import annotations

import os


def is_path(text: str) -> bool:
    """Whether it is a path of this machine, and no URL that fsspec knows.

    >>> is_path("a/b.png"), is_path("s3://bucket/b.png"), is_path("data:image/png;base64,AA=="), is_path("zip::a.zip")
    (True, False, False, False)
    """
    return "://" not in text and "::" not in text and not text.startswith("data:")


def absolute(text: str) -> str:
    """The same place, for a process that has another working directory; a URL as it is."""
    return os.path.abspath(os.path.expanduser(text)) if is_path(text) else text
