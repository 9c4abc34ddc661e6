"""How long work is told of: stages with a number of parts, e.g. graphs to compile or denoising steps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Progress(Protocol):
    """Something that shows progress; every method is called from the thread that runs the pipeline."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of `total` parts begins."""

    def advance(self, label: str) -> None:
        """One more part is done."""

    def end(self) -> None:
        """The stage is over, also where it failed."""

    def note(self, text: str) -> None:
        """Something that is worth a line, and no error."""


class Silent:
    """Shows nothing: for servers and tests, whose notes go to the log."""

    def begin(self, stage: str, total: int) -> None:
        """Do nothing."""

    def advance(self, label: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Log it."""
        _log.warning("%s", text)


_log = logging.getLogger("max_zimage")
_current: ContextVar[Progress] = ContextVar("progress", default=Silent())  # noqa: B039  (it has no state)


def current() -> Progress:
    """The progress display that `shown_by` has put in place, or one that shows nothing."""
    return _current.get()


def note(text: str) -> None:
    """Tell whoever waits of something that is worth a line, and no error."""
    current().note(text)


@contextmanager
def shown_by(progress: Progress) -> Iterator[None]:
    """Show the work done inside the block.

    MAX makes the components with a fixed signature, so the display cannot be handed to them.
    """
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def stage(name: str, total: int) -> Iterator[Progress]:
    """A stage of the current display, ended whatever happens."""
    progress = current()
    progress.begin(name, total)
    try:
        yield progress
    finally:
        progress.end()
