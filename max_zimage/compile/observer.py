"""The one place where compiled calls can be watched. Nobody listens unless a profile is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from max.driver import Buffer


class Observer(Protocol):
    """Something that runs compiled calls on behalf of whoever makes them."""

    def call(self, name: str, inputs: Sequence[Buffer], run: Callable[[], list[Buffer]]) -> list[Buffer]:
        """Run a graph and hand on what it returns.

        Args:
            name: The graph's.
            inputs: What it is called with.
            run: Makes the call.
        """


_current: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Let an observer run every compiled call that this thread makes inside the block."""
    token = _current.set(observer)
    try:
        yield
    finally:
        _current.reset(token)


def observed(name: str, inputs: Sequence[Buffer], run: Callable[[], list[Buffer]]) -> list[Buffer]:
    """Run a graph, through the observer if there is one; see `Observer.call`."""
    observer = _current.get()
    return run() if observer is None else observer.call(name, inputs, run)
