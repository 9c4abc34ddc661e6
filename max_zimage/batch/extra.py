"""Packages that only jobs need, imported when they are used; without them a sentence says what to install."""

from __future__ import annotations

import importlib
from typing import Any


def arrow() -> Any:
    """The module pyarrow.

    Raises:
        ValueError: If it is not installed.
    """
    return _module("pyarrow", "batch", "jobs read and write Parquet with it")


def parquet() -> Any:
    """The module pyarrow.parquet; errors are those of `arrow`."""
    arrow()
    return importlib.import_module("pyarrow.parquet")


def ray() -> Any:
    """The module ray.

    Raises:
        ValueError: If it is not installed.
    """
    return _module("ray", "ray", "--ray has a Ray cluster draw")


def _module(name: str, extra: str, why: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} is not installed, and {why}; pip install 'max-zimage[{extra}]'") from error
