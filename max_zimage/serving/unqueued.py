"""Requests before the queue: while their prompts are written out they are known by their ids, and can be ended."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from max_zimage.serving.dispatcher import CancelledBy, Dispatcher, ended_by
from max_zimage.serving.errors import ApiError, duplicate_id
from max_zimage.serving.metrics import Metrics

T = TypeVar("T")


@dataclass(eq=False)
class Unqueued:
    """One request that is not queued yet.

    Attributes:
        name: The id by which its client knows it.
        arrived: `time.monotonic` when it became known.
        run: Which of the requests that have had this id; of the job that it becomes, too.
        end: Why it does not become one; None while nothing is in its way.
        ended: `time.monotonic` of that.
        task: What it waits for.
    """

    name: str
    arrived: float = field(default_factory=time.monotonic)
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    end: ApiError | None = None
    ended: float | None = None
    task: asyncio.Task[Any] | None = None

    async def waits_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for something, unless the request is ended before.

        Raises:
            ApiError: Why it was ended.
        """
        # A task of its own: it can be cancelled while whoever waits for it goes on, to answer.
        self.task = task = asyncio.create_task(work)
        try:
            result = await task
        except asyncio.CancelledError:
            if self.end is None:  # it is the waiting that was cancelled
                raise
        if self.end is not None:
            raise self.end
        return result


class UnqueuedRequests:
    """All requests of a server that are not queued yet.

    Args:
        dispatcher: Those that are.
        metrics: Counts those that are cancelled.
        changed: Called when there is a new one and when one has been ended; it may not wait.
    """

    def __init__(self, dispatcher: Dispatcher, metrics: Metrics, changed: Callable[[Unqueued], None]) -> None:
        self._dispatcher, self._metrics, self._changed = dispatcher, metrics, changed
        self._known: dict[str, Unqueued] = {}

    @property
    def all(self) -> list[Unqueued]:
        """Each of them."""
        return list(self._known.values())

    def find(self, name: str) -> Unqueued | None:
        """One of them, by its id."""
        return self._known.get(name)

    @contextmanager
    def known(self, name: str) -> Iterator[Unqueued]:
        """A request while it is made ready for the queue; it is queued at the end, or the error says why it is not.

        Args:
            name: The id by which its client knows it.

        Raises:
            ApiError: 409 if the id is in use.
        """
        if self.find(name) is not None or self._dispatcher.find(name) is not None:
            raise duplicate_id(name)
        request = self._known[name] = Unqueued(name)
        self._changed(request)
        try:
            yield request
        except ApiError as error:
            self._end(request, error)
            raise
        except asyncio.CancelledError:
            self.cancel(request, "shutdown" if self._dispatcher.is_closing else "client")
            raise
        except Exception:
            self._end(request, ApiError(500, "failed", f"request {name} failed; the server's log says why"))
            raise
        finally:
            self._forget(request)

    def cancel(self, request: Unqueued, by: CancelledBy) -> None:
        """End a request. Nothing happens to one that has been ended.

        Args:
            request: One of them.
            by: Who ends it.
        """
        if request.end is not None:
            return
        self._metrics.cancellations.labels(by).inc()
        self._end(request, ended_by(by))
        if request.task is not None:
            request.task.cancel()

    def _end(self, request: Unqueued, end: ApiError) -> None:
        if request.end is None:
            request.end, request.ended = end, time.monotonic()
            self._forget(request)  # at once: its id is free
            self._changed(request)

    def _forget(self, request: Unqueued) -> None:
        if self.find(request.name) is request:  # and not a later one that has taken the same id
            del self._known[request.name]
