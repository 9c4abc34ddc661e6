"""The denoising loop under watch: between the first call of a step's graph and that of the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from max.driver import Buffer, Device
from max.experimental.realization_context import EagerRealizationContext, set_default_realization_context
from max.experimental.tensor import Tensor

from max_zimage.compile.compiler import CompiledGraph
from max_zimage.pipeline.run import Run

TRANSFERS = ["to", "to_numpy", "from_numpy", "copy", "inplace_copy_from", "item", "contiguous", "__dlpack__"]
"""What a Buffer can do that moves data or waits for it."""
WAITS = ["synchronize"]
"""What a Device can do that waits."""


class RefusedContext(EagerRealizationContext):
    """Where an operation on Tensors outside a graph would be computed."""

    async def realize_all(self) -> list[Tensor]:
        raise AssertionError("an eager tensor op ran in the denoising loop")


@dataclass
class Watched:
    """What a run did.

    Attributes:
        called: The compiled graphs by name, those before and behind the loop too.
        moved: The loop's transfers and waits, where they are not refused.
    """

    called: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)


class _Guard:
    """Refuses eager ops, transfers and waits while it is on; those that are allowed are written down."""

    def __init__(self, allowed: Sequence[str], moved: list[str]) -> None:
        self._allowed, self._moved, self._patch = allowed, moved, pytest.MonkeyPatch()
        self._contexts: list[Any] = []
        self._inside = False

    @property
    def is_on(self) -> bool:
        return bool(self._contexts)

    def begin(self) -> None:
        self._contexts.append(set_default_realization_context(RefusedContext))
        self._contexts[-1].__enter__()
        for owner, names in ((Buffer, TRANSFERS), (Device, WAITS)):
            for name in names:
                self._patch.setattr(owner, name, self._seen(owner, name))

    def end(self) -> None:
        self._patch.undo()
        while self._contexts:
            self._contexts.pop().__exit__(None, None, None)

    def _seen(self, owner: type, name: str) -> Callable[..., object]:
        original = getattr(owner, name)

        def transfer(*arguments: Any, **named: Any) -> object:
            if self._inside:  # one may be made of others
                return original(*arguments, **named)
            if name not in self._allowed:
                raise AssertionError(f"{owner.__name__}.{name} was called in the denoising loop")
            self._moved.append(name)
            self._inside = True
            try:
                return original(*arguments, **named)
            finally:
                self._inside = False

        return transfer


@contextmanager
def watched_loop(patch: pytest.MonkeyPatch, allowed: Sequence[str] = ()) -> Iterator[Watched]:
    """Watch the runs of a test, one after the other.

    Between the legs of a run latents are on the host, see `max_zimage.pipeline.later`: nothing is watched there, and
    the graphs that are called are left out.

    Args:
        patch: Of the test.
        allowed: Transfers and waits that may be.
    """
    watched = Watched()
    guard, call, change = _Guard(allowed, watched.moved), CompiledGraph.__call__, Run._change

    def counted(graph: CompiledGraph, *inputs: Buffer) -> list[Buffer]:
        if graph.name.startswith("denoise") and not guard.is_on:
            guard.begin()
        if graph.name == "decode":
            guard.end()
        watched.called.append(graph.name)
        return call(graph, *inputs)

    def changed(self: Run) -> None:
        guard.end()
        before = len(watched.called)
        change(self)
        del watched.called[before:]
        guard.begin()

    patch.setattr(CompiledGraph, "__call__", counted)
    patch.setattr(Run, "_change", changed)
    try:
        yield watched
    finally:
        guard.end()
