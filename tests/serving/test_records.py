"""Requests by their ids through two replicas, whose workers a test plays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.errors import ApiError
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.store import records as records_module
from max_zimage.serving.store import times
from max_zimage.serving.store.files import StoreError, StoreFiles
from max_zimage.serving.store.records import RequestRecords
from max_zimage.serving.store.sealed import Seal
from max_zimage.serving.store.state_store import StateStore
from tests.serving.test_dispatcher import FakeWorker, context, dispatcher, outcome, settled


class Replica:
    """One server's requests, over a store."""

    def __init__(self, address: str, room: int = 100_000, **options: Any) -> None:
        self.store = StateStore(StoreFiles(address), Seal("key"), room=room, seconds=60.0)
        self.metrics, self.worker = Metrics(), FakeWorker()
        self.queue: Dispatcher = dispatcher(metrics=self.metrics, **options)
        self.records = RequestRecords(self.store, self.queue, self.metrics)
        self.queue.attach(self.worker)  # type: ignore[arg-type]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        keeps = asyncio.create_task(self.records.keep())
        try:
            yield
        finally:
            keeps.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeps


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that look at each other often."""
    for name, value in {"TICK": 0.05, "ASK": 0.05, "BEAT": 0.1, "LOST": 2.0}.items():
        monkeypatch.setattr(times, name, value)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)


def with_replicas(folder: Path, test: Callable[[Replica, Replica], Awaitable[None]], **options: Any) -> None:
    async def body() -> None:
        one, two = (Replica(f"file://{folder}/state", **options) for _ in range(2))
        async with one.running(), two.running():
            await test(one, two)

    asyncio.run(body())


async def becomes(records: RequestRecords, name: str, **expected: Any) -> dict[str, Any]:
    """How a request stands, once it stands so."""
    found: dict[str, Any] | None = None
    for _ in range(200):
        found = await records.find(name)
        if found is not None and expected.items() <= found.items():
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} stands at {found}, not at {expected}")


def test_the_other_replica_knows_how_a_request_stands(tmp_path: Path) -> None:
    async def body(one: Replica, two: Replica) -> None:
        jobs = [one.queue.submit(context(name), name) for name in "abc"]
        assert await becomes(two.records, "c", status="queued") == {"id": "c", "status": "queued", "before": 0}
        one.worker.say("a", 0)
        one.worker.say("a", 3)
        expected = {"id": "a", "status": "running", "step": 3, "steps": 4}
        assert await becomes(two.records, "a", status="running", step=3) == expected
        assert await becomes(one.records, "a", status="running", step=3) == expected
        one.worker.finish("a")
        one.worker.fail("b")
        assert await outcome(one.queue, jobs[0]) == "done"
        assert await outcome(one.queue, jobs[1]) == "500 failed"
        for replica in (two, one):
            done = await becomes(replica.records, "a", status="done")
            assert set(done) == {"id", "status", "seconds"}
            failed = await becomes(replica.records, "b", status="failed")
            assert failed["error"]["code"] == "failed"
        assert await two.records.find("d") is None

    with_replicas(tmp_path, body)


def test_a_request_is_cancelled_through_the_other_replica(tmp_path: Path) -> None:
    async def body(one: Replica, two: Replica) -> None:
        running, queued = (one.queue.submit(context(name), name) for name in "ab")
        await settled()
        one.worker.say("a", 0)
        for name, job in (("a", running), ("b", queued)):
            await becomes(two.records, name, id=name)
            cancelled = asyncio.create_task(outcome(one.queue, job))
            assert await two.records.cancel(name) == "cancelled"
            assert await cancelled == "499 cancelled"
            assert (await becomes(two.records, name, status="cancelled"))["error"]["code"] == "cancelled"
            assert await two.records.cancel(name) is None
        assert one.worker.cancelled == ["a", "b"]
        assert await two.records.cancel("c") is None

    with_replicas(tmp_path, body)


def test_an_old_wish_does_not_end_a_later_request_of_the_same_id(tmp_path: Path) -> None:
    async def body(one: Replica, two: Replica) -> None:
        first = one.queue.submit(context("a"), "name")
        await becomes(two.records, "name", status="queued")
        one.queue.cancel(first, "client")
        await two.store.ask_to_cancel("name", first.run)
        second = one.queue.submit(context("b"), "name")
        await asyncio.sleep(0.4)
        assert one.queue.find("name") is second
        one.worker.finish("b")
        assert await outcome(one.queue, second) == "done"
        await becomes(two.records, "name", status="done")

    with_replicas(tmp_path, body)


def test_an_id_is_taken_once_on_all_replicas(tmp_path: Path) -> None:
    async def body(one: Replica, two: Replica) -> None:
        job = one.queue.submit(context("a"), "a")
        await becomes(two.records, "a", status="queued")
        with pytest.raises(ApiError, match="a request with the id a is not done yet"):
            await two.records.check_free("a")
        await two.records.check_free("b")
        one.queue.cancel(job, "api")
        await one.records.check_free("a")  # at once where it was, whatever the store still says
        again = one.queue.submit(context("b"), "a")
        await settled()
        one.worker.finish("b")
        assert await outcome(one.queue, again) == "done"
        await becomes(two.records, "a", status="done")
        await two.records.check_free("a")

    with_replicas(tmp_path, body)


def test_a_replica_that_is_gone_has_lost_its_requests(tmp_path: Path) -> None:
    async def body() -> None:
        one, two = (Replica(f"file://{tmp_path}/state") for _ in range(2))
        async with two.running():
            async with one.running():
                one.queue.submit(context("a"), "a")
                await settled()
                one.worker.say("a", 0)
                await becomes(two.records, "a", status="running")
                await asyncio.sleep(2.3)  # nothing new to say of it, and yet it is there
                assert (await becomes(two.records, "a", id="a"))["status"] == "running"
            assert await becomes(two.records, "a", status="lost") == {"id": "a", "status": "lost"}
            assert await two.records.cancel("a") is None
            await two.records.check_free("a")

    asyncio.run(body())


def test_in_memory_the_end_is_known_too() -> None:
    async def body() -> None:
        one = Replica("memory")
        async with one.running():
            job = one.queue.submit(context("a"), "a")
            assert await one.records.find("a") == {"id": "a", "status": "queued", "before": 0}
            task = asyncio.create_task(outcome(one.queue, job))
            assert await one.records.cancel("a") == "cancelled"
            assert (await becomes(one.records, "a", status="cancelled"))["error"]["code"] == "cancelled"
            assert await task == "499 cancelled"
            await one.records.flush()
            assert (await becomes(one.records, "a", status="cancelled"))["id"] == "a"
            again = one.queue.submit(context("b"), "a")
            await settled()
            assert (await becomes(one.records, "a", id="a"))["status"] == "queued"
            one.worker.finish("b")
            assert await outcome(one.queue, again) == "done"
            await becomes(one.records, "a", status="done")

    asyncio.run(body())


def test_last_words_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server ends while a slow store is written to: what its requests came to is found afterwards."""
    put = StoreFiles.put

    def slow(files: StoreFiles, path: str, content: bytes) -> None:
        time.sleep(0.3)
        put(files, path, content)

    async def body() -> None:
        one, two = (Replica(f"file://{tmp_path}/state", queue=9) for _ in range(2))
        monkeypatch.setattr(StoreFiles, "put", slow)
        async with one.running():
            jobs = [one.queue.submit(context(name), name) for name in "abcdef"]  # more than threads of a store
            await settled()
            for job in jobs:
                one.queue.cancel(job, "shutdown")
            await asyncio.sleep(0.1)  # the first are being written
            await one.records.flush()
            one.store.close()
        for name in "abcdef":
            found = await two.records.find(name)
            assert found is not None
            assert found["status"] == "failed"

    asyncio.run(body())


def test_what_took_too_long_has_failed() -> None:
    async def body() -> None:
        one = Replica("memory", seconds=0.05)
        job = one.queue.submit(context("a"), "a")
        assert await outcome(one.queue, job) == "429 time_limit"
        found = await one.records.find("a")
        assert found is not None
        assert (found["status"], found["error"]["code"]) == ("failed", "time_limit")

    asyncio.run(body())


def test_a_store_that_is_away_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, and what was not written down is when the store is back."""
    monkeypatch.setattr(records_module, "_MOST", 2)
    put = StoreFiles.put

    def away(files: StoreFiles, path: str, content: bytes) -> None:
        raise StoreError("the store is away")

    async def body(one: Replica, two: Replica) -> None:
        with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
            broken.setattr(StoreFiles, "put", away)
            for name in "abc":
                job = one.queue.submit(context(name), name)
                await asyncio.sleep(0.2)
                one.worker.finish(name)
                assert await outcome(one.queue, job) == "done"
            await asyncio.sleep(0.3)
            assert one.metrics.store_errors._value.get() > 1
            assert [record.message for record in caplog.records] == ["requests are not written down: the store is away"]
            assert await two.records.find("c") is None
        assert StoreFiles.put is put
        await becomes(two.records, "c", status="done")
        await becomes(two.records, "b", status="done")
        assert await two.records.find("a") is None  # of very many only the last ones are remembered

    with_replicas(tmp_path, body)
