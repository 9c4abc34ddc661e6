"""Requests whose clients know no ids and speak of the current one, as AUTOMATIC1111's do; through any replica.

The current one is the oldest of those that are being drawn, on whichever replica, and the oldest of all where none is.
What is written of each is how far it is and a small picture of it, under a name that is made of its run; it goes when
the request has its answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.job import Change, Job
from max_zimage.serving.store import times
from max_zimage.serving.store.sealed import Entry
from max_zimage.serving.store.state_store import StateStore, TooLarge


@dataclass(frozen=True, kw_only=True)
class Current:
    """How one of them stands.

    Attributes:
        name: Its id.
        run: Which of the requests that have had this id.
        since: Unix time at which it was queued.
        seconds: From then to when this was said.
        step: Steps done.
        steps: Steps in all; 0 while it waits.
        preview: A small PNG of its unfinished work; empty where there is none yet.
    """

    name: str
    run: str
    since: float
    seconds: float
    step: int
    steps: int
    preview: bytes

    @classmethod
    def of_entry(cls, entry: Entry) -> Current:
        """What another replica has written of one."""
        named = {name: entry.facts[name] for name in ("name", "run", "since", "seconds", "step", "steps")}
        return cls(**named, preview=entry.content)

    def entry(self) -> Entry:
        """The same for other replicas."""
        facts: dict[str, Any] = {"name": self.name, "run": self.run, "since": self.since, "seconds": self.seconds}
        return Entry(facts | {"step": self.step, "steps": self.steps}, self.preview)


class CurrentRequests:
    """Those of all replicas.

    Args:
        store: Where they meet.
        dispatcher: This replica's requests that are queued or drawn.
        hurry: Called when something is to be written down at once; it may not wait.
    """

    def __init__(self, store: StateStore, dispatcher: Dispatcher, hurry: Callable[[], None]) -> None:
        self._store, self._dispatcher, self._hurry = store, dispatcher, hurry
        self._mine: dict[str, tuple[Job, float]] = {}  # run -> request and the Unix time at which it was queued
        self._due: set[str] = set()  # runs to be written down, or no more
        self._written: dict[str, float] = {}  # of those on their way: when they were written down last
        dispatcher.observers.append(self._note)

    @contextmanager
    def known(self, job: Job) -> Iterator[None]:
        """A request among those of which clients speak as the current one, until it has an answer."""
        self._mine[job.run] = job, time.time()
        self._changed(job.run)
        try:
            yield
        finally:
            del self._mine[job.run]
            self._changed(job.run)

    async def all(self) -> list[Current]:
        """All of them, the current one first; those of other replicas as they stood some two seconds ago at most.

        Raises:
            StoreError: If the store is needed and cannot be read.
        """
        found = [_described(job, since) for job, since in self._mine.values() if job.end is None]
        if self._store.is_shared:
            # Its own are known better than the store has them, and those that have ended may still stand there.
            others = map(Current.of_entry, await self._store.currents(times.LOST))
            found += [each for each in others if each.run not in self._mine and each.run not in self._due]
        return sorted(found, key=lambda each: (each.steps == 0, each.since, each.run))

    async def cancel(self) -> None:
        """End the current one, here or on the replica that has it; wait some seconds for that one to obey.

        Raises:
            StoreError: If the store is needed and cannot be read or written.
        """
        for first in (await self.all())[:1]:
            if first.run in self._mine:
                self._dispatcher.cancel(self._mine[first.run][0], "api")
                return
            await self._store.ask_to_cancel(first.name, first.run)
            for _ in range(times.ASKS):
                await asyncio.sleep(times.ASK)
                if first.run not in {each.run for each in await self.all()}:
                    return

    async def flush(self) -> None:
        """Write down what is due; not while somebody else does.

        Raises:
            StoreError: If the store cannot be written; how requests stand that are on their way stays due.
        """
        late = time.monotonic() - times.BEAT
        if self._store.is_shared:
            self._due |= {run for run in self._mine if self._written.get(run, late) <= late}
        results = await asyncio.gather(*map(self._write, list(self._due)), return_exceptions=True)
        for failure in results:
            if failure is not None:
                raise failure

    async def _write(self, run: str) -> None:
        if run not in self._mine:
            self._written.pop(run, None)
            try:
                await self._store.remove_current(run)
            finally:  # where it stays, nobody believes it for long
                self._due.discard(run)
            return
        self._due.discard(run)  # first: what changes meanwhile is due again
        try:
            await self._store.put_current(run, _described(*self._mine[run]).entry())
        except TooLarge:
            pass  # a store without room for this has none for pictures either
        except BaseException:
            self._due.add(run)
            raise
        self._written[run] = time.monotonic()

    def _note(self, job: Job, change: Change) -> None:
        if job.run in self._mine and change != "ended":
            self._changed(job.run, is_urgent=change != "step")

    def _changed(self, run: str, *, is_urgent: bool = True) -> None:
        if not self._store.is_shared:  # nobody else asks
            return
        self._due.add(run)
        if is_urgent:
            self._hurry()


def _described(job: Job, since: float) -> Current:
    """How one of this replica's stands."""
    return Current(
        name=job.name,
        run=job.run,
        since=since,
        seconds=time.monotonic() - job.arrived,
        step=job.progress.step if job.progress else 0,
        steps=job.progress.steps if job.progress else 0,
        preview=job.preview.png if job.preview else b"",
    )
