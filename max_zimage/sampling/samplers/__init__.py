"""Samplers, a file each: its name is the file's, and its `plan(schedule)` returns its `Evaluations`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.schedule import Schedule

DEFAULT = "euler"
NAMES: tuple[str, ...] = tuple(sorted(module.name for module in iter_modules(__path__)))
"""All samplers there are."""


def plan(name: str, schedule: Schedule) -> Evaluations:
    """The evaluations of a request under a sampler.

    Args:
        name: One of `NAMES`.
        schedule: The request's.

    Raises:
        ValueError: If there is no such sampler; names those there are.
    """
    if name not in NAMES:
        raise ValueError(f"sampler must be one of {', '.join(NAMES)}, got {name!r}")
    made: Callable[[Schedule], Evaluations] = import_module(f"{__name__}.{name}").plan
    return made(schedule)
