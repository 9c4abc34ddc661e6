"""Requests by their ids, through whichever replica is asked.

The one that has a request writes down how it stands, and looks for wishes to end it. What is written is how far a
request is and what became of it, never its prompt or its pictures. The replica's own requests are known without the
store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, Literal, get_args

from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.errors import ApiError, duplicate_id
from max_zimage.serving.job import Change, Job
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.store import times
from max_zimage.serving.store.currents import CurrentRequests
from max_zimage.serving.store.files import StoreError
from max_zimage.serving.store.state_store import StateStore, TooLarge
from max_zimage.serving.unqueued import Unqueued, UnqueuedRequests

_log = logging.getLogger("max_zimage.serving")

OnItsWay = Literal["enhancing", "queued", "running"]
ACTIVE: tuple[OnItsWay, ...] = get_args(OnItsWay)
_SWEEP = 60.0
_MOST = 4096  # ended requests that are not written down


class RequestRecords:
    """The requests of a server, on all its replicas.

    Attributes:
        unqueued: This replica's requests whose prompts are being written out.
        currents: Those of clients that know no ids.

    Args:
        store: Where they meet.
        dispatcher: This replica's requests that are queued or drawn.
        metrics: Counts failures of the store.
    """

    def __init__(self, store: StateStore, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._store, self._dispatcher, self._metrics = store, dispatcher, metrics
        self._due: set[str] = set()  # ids of requests to be written down
        self._ended: dict[str, dict[str, Any]] = {}  # what became of those that are not written down yet
        self._written: dict[str, float] = {}  # of those on their way: when they were written down last
        self._urgent = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._complained = float("-inf")
        dispatcher.observers.append(self._note)
        self.unqueued = UnqueuedRequests(dispatcher, metrics, self._note_unqueued)
        self.currents = CurrentRequests(store, dispatcher, self._urgent.set)

    async def find(self, name: str) -> dict[str, Any] | None:
        """How a request stands, as its client is told; None if nothing is known of it.

        Raises:
            StoreError: If the store is needed and cannot be read.
        """
        facts = self._here(name) or await self._store.request(name)
        return None if facts is None else _told(facts)

    async def cancel(self, name: str) -> str | None:
        """End a request, here or on the replica that has it.

        Returns:
            "cancelled"; "cancelling" where its replica has not said so yet; None if there is none that is not done.

        Raises:
            StoreError: If the store is needed and cannot be read or written.
        """
        job = self._dispatcher.find(name)
        if job is not None:
            self._dispatcher.cancel(job, "api")
            return "cancelled"
        unqueued = self.unqueued.find(name)
        if unqueued is not None:
            self.unqueued.cancel(unqueued, "api")
            return "cancelled"
        facts = self._here(name) or await self._store.request(name)
        if facts is None or _told(facts)["status"] not in ACTIVE:
            return None
        await self._store.ask_to_cancel(name, facts["run"])
        for _ in range(times.ASKS):
            await asyncio.sleep(times.ASK)
            now = await self._store.request(name)
            status = None if now is None or now["run"] != facts["run"] else _told(now)["status"]
            if status not in ACTIVE:
                return "cancelled" if status == "cancelled" else None
        return "cancelling"

    async def check_free(self, name: str) -> None:
        """Refuse an id that a client has chosen for a request while there is one of that id, here or elsewhere.

        Raises:
            ApiError: 409. Where the store cannot be read, nobody knows of other replicas, and the request is taken.
        """
        facts = None
        if self._store.is_shared and self._here(name) is None:
            try:
                facts = await self._store.request(name)
            except StoreError as error:
                self._complain(error)
        facts = self._here(name) or facts  # last: it may have come while the store was asked
        if facts is not None and _told(facts)["status"] in ACTIVE:
            raise duplicate_id(name)

    async def keep(self) -> None:
        """Write down what changes and obey wishes, until cancelled."""
        swept = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                # `wait_for` of Python 3.11 would go on when it is cancelled as the event comes.
                async with asyncio.timeout(times.TICK):
                    await self._urgent.wait()
            self._urgent.clear()
            try:
                await self.flush()
                await self._obey()
                if time.monotonic() > swept + _SWEEP:
                    swept = time.monotonic()
                    await self._store.sweep()
            except Exception as error:  # whatever it is, later requests are written down again
                self._complain(error)
                await asyncio.sleep(times.TICK)

    async def flush(self) -> None:
        """Write down all that is due, and wait for what somebody else is writing down.

        Raises:
            StoreError: If the store cannot be written; what was not written stays due.
        """
        # What is being written is not due: without the lock the last one at a server's end would find nothing to do.
        async with self._flushing:
            if self._store.is_shared:
                late = time.monotonic() - times.BEAT
                self._due |= {name for name in self._runs() if self._written.get(name, late) <= late}
            writing = (self.currents.flush(), *map(self._write, list(self._due)))
            results = await asyncio.gather(*writing, return_exceptions=True)
        for failure in results:
            if failure is not None:
                raise failure

    async def _write(self, name: str) -> None:
        self._due.discard(name)  # first: what changes meanwhile is due again
        facts = self._here(name)
        if facts is None:
            return
        try:
            await self._store.put_request(name, facts)
        except TooLarge:
            pass  # in a store without room for a line there is none for pictures either, which is told to who asks
        except BaseException:
            self._due.add(name)
            raise
        self._written[name] = time.monotonic()
        if self._ended.get(name) is facts:
            del self._ended[name], self._written[name]

    def _here(self, name: str) -> dict[str, Any] | None:
        """What this replica knows of a request; None if that is nothing."""
        job, unqueued = self._dispatcher.find(name), self.unqueued.find(name)
        if job is not None:
            return _facts(job, self._dispatcher.place(job))
        return self._ended.get(name) if unqueued is None else _facts_of_unqueued(unqueued)

    def _runs(self) -> dict[str, str]:
        """The requests of this replica that are not done, id -> run."""
        mine: list[Job | Unqueued] = [*self.unqueued.all, *self._dispatcher.jobs]
        return {each.name: each.run for each in mine}

    def _note(self, job: Job, change: Change) -> None:
        if change == "queued":
            self._ended.pop(job.name, None)
        self._changed(job.name, _facts(job, 0) if change == "ended" else None, is_urgent=change != "step")

    def _note_unqueued(self, request: Unqueued) -> None:
        if request.end is None:
            self._ended.pop(request.name, None)
        self._changed(request.name, None if request.end is None else _facts_of_unqueued(request))

    def _changed(self, name: str, end: dict[str, Any] | None, *, is_urgent: bool = True) -> None:
        """Have it written down how a request stands.

        Args:
            name: Its id.
            end: What became of it; None while it is on its way.
            is_urgent: Whether at once.
        """
        if end is not None:
            self._ended[name] = end
            while len(self._ended) > _MOST:  # of a store that is away
                forgotten = next(iter(self._ended))
                del self._ended[forgotten]
                self._due.discard(forgotten)
        elif not self._store.is_shared:  # nobody else asks, and here it is known
            self._due.discard(name)
            return
        self._due.add(name)
        if is_urgent:
            self._urgent.set()

    async def _obey(self) -> None:
        runs = self._runs()
        if not runs or not self._store.is_shared:
            return
        for name, run in (await self._store.wishes(list(runs))).items():
            job, unqueued = self._dispatcher.find(name), self.unqueued.find(name)
            if job is not None and job.run == run:
                self._dispatcher.cancel(job, "api")
            elif unqueued is not None and unqueued.run == run:
                self.unqueued.cancel(unqueued, "api")

    def _complain(self, error: Exception) -> None:
        """Once a minute: a store that is away is asked every second."""
        self._metrics.store_errors.inc()
        if time.monotonic() > self._complained + _SWEEP:
            self._complained = time.monotonic()
            known = isinstance(error, StoreError)
            _log.warning("requests are not written down: %s", error, exc_info=None if known else error)


def _facts(job: Job, before: int) -> dict[str, Any]:
    """What is written down of a request.

    Args:
        job: The request.
        before: How many requests come before it.
    """
    return {"run": job.run, "answer": _described(job, before), "written": time.time()}


def _facts_of_unqueued(request: Unqueued) -> dict[str, Any]:
    """The same of one whose prompt is being written out."""
    answer = {"id": request.name, "status": "enhancing"}
    if request.end is not None:
        answer = _ended(request.name, request.arrived, request.ended, request.end)
    return {"run": request.run, "answer": answer, "written": time.time()}


def _described(job: Job, before: int) -> dict[str, Any]:
    """How a request stands, as its client is told."""
    if job.end is None and job.progress is None:
        return {"id": job.name, "status": "queued", "before": before}
    if job.end is None and job.progress is not None:
        return {"id": job.name, "status": "running", "step": job.progress.step, "steps": job.progress.steps}
    return _ended(job.name, job.arrived, job.ended, job.end)


def _ended(name: str, arrived: float, ended: float | None, end: object) -> dict[str, Any]:
    """What became of a request: an error, or what it asked for."""
    told = {"id": name, "seconds": round((ended or time.monotonic()) - arrived, 3)}
    if not isinstance(end, ApiError):
        return told | {"status": "done"}
    return told | {"status": "cancelled" if end.code == "cancelled" else "failed", **end.body()}


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    """What a replica has written, unless it wrote so long ago that it cannot be there any more."""
    answer: dict[str, Any] = facts["answer"]
    if answer["status"] in ACTIVE and facts["written"] < time.time() - times.LOST:
        return {"id": answer["id"], "status": "lost"}
    return answer
