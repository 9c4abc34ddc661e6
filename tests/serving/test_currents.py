"""Requests of clients that know no ids, through two replicas, whose workers a test plays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from max_zimage.serving.job import Job
from max_zimage.serving.store import times
from max_zimage.serving.store.currents import Current
from max_zimage.serving.store.files import StoreError, StoreFiles
from max_zimage.serving.worker.messages import Preview
from tests.serving.test_dispatcher import context, outcome, settled
from tests.serving.test_records import Replica, hurried, with_replicas


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)


def asked(replica: Replica, name: str, became: list[str]) -> asyncio.Task[None]:
    """A request as AUTOMATIC1111's routes have it: known until it has its answer."""
    job: Job = replica.queue.submit(context(name), name)

    async def answered() -> None:
        with replica.records.currents.known(job):
            became.append(f"{name} {await outcome(replica.queue, job)}")

    return asyncio.create_task(answered())


async def until(replica: Replica, holds: Callable[[list[Current]], bool]) -> list[Current]:
    """What a replica says of them, once it is so."""
    found: list[Current] = []
    for _ in range(200):
        found = await replica.records.currents.all()
        if holds(found):
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"it stays at {found}")


def run(tmp_path: Path, body: Callable[[Replica, Replica, list[str]], Awaitable[None]]) -> list[str]:
    became: list[str] = []
    with_replicas(tmp_path, lambda one, two: body(one, two, became))
    return became


def test_all_replicas_say_the_same_of_the_current_one(tmp_path: Path) -> None:
    async def body(one: Replica, two: Replica, became: list[str]) -> None:
        first, second = asked(one, "a", became), asked(two, "b", became)
        await settled()
        for replica in (one, two):
            found = await until(replica, lambda each: len(each) == 2)
            # Nothing is drawn yet: the one that came first.
            assert [(each.name, each.step, each.steps, each.preview) for each in found] == [
                ("a", 0, 0, b""),
                ("b", 0, 0, b""),
            ]
        two.worker.say("b", 0)
        two.worker.say("b", 2)
        for replica in (one, two):
            found = await until(replica, lambda each: each[0].step == 2)
            assert [(each.name, each.steps) for each in found] == [("b", 4), ("a", 0)]
            assert 0 < found[0].seconds < 20
        (job,) = two.queue.jobs
        job.preview = Preview(picture=0, png=b"a small picture")
        two.worker.say("b", 3)
        for replica in (one, two):
            found = await until(replica, lambda each: each[0].step == 3)
            assert found[0].preview == b"a small picture"
        one.worker.say("a", 1)
        for replica in (one, two):  # both are drawn: the one that came first again
            assert (await until(replica, lambda each: each[0].name == "a"))[0].step == 1
        two.worker.finish("b")
        await second
        for replica in (one, two):
            assert [each.name for each in await until(replica, lambda each: len(each) == 1)] == ["a"]
        one.worker.finish("a")
        await first
        for replica in (two, one):
            assert await until(replica, lambda each: not each) == []

    assert run(tmp_path, body) == ["b done", "a done"]


def test_the_current_one_is_ended_wherever_it_is(tmp_path: Path) -> None:
    async def body(one: Replica, two: Replica, became: list[str]) -> None:
        waits, drawn = asked(one, "a", became), asked(two, "b", became)
        await settled()
        two.worker.say("b", 1)
        await until(one, lambda each: len(each) == 2 and each[0].step == 1)
        await one.records.currents.cancel()
        await drawn
        assert became == ["b 499 cancelled"]
        await until(two, lambda each: [some.name for some in each] == ["a"])
        other = two.queue.submit(context("c"), "c")  # of another route
        await two.records.currents.cancel()
        await waits
        assert became[1:] == ["a 499 cancelled"]
        for replica in (one, two):
            await until(replica, lambda each: not each)
            await replica.records.currents.cancel()
        assert other.end is None
        assert two.queue.jobs == [other]

    run(tmp_path, body)


def test_in_its_own_replica_it_is_ended_at_once() -> None:
    async def body() -> None:
        one, became = Replica("memory"), list[str]()
        first, second = asked(one, "a", became), asked(one, "b", became)
        await settled()
        one.worker.say("b", 1)
        await until(one, lambda each: [some.name for some in each] == ["b", "a"])
        await one.records.currents.cancel()
        await one.records.currents.cancel()  # and what has ended is not ended twice
        await asyncio.gather(first, second)
        assert became == ["b 499 cancelled", "a 499 cancelled"]
        assert one.metrics.cancellations.labels("api")._value.get() == 2
        assert await one.records.currents.all() == []

    asyncio.run(body())


def test_what_a_dead_replica_had_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "LOST", 0.8)

    async def body() -> None:
        one, two = (Replica(f"file://{tmp_path}/state") for _ in range(2))
        async with two.running():
            async with one.running():
                task = asked(one, "a", [])
                await until(two, lambda each: len(each) == 1)
                await asyncio.sleep(1.0)  # nothing new to say of it, and yet it is there
                assert len(await two.records.currents.all()) == 1
            await until(two, lambda each: not each)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(body())


def test_a_store_that_is_away_costs_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: object) -> None:
        raise StoreError("the store is away")

    async def body(one: Replica, two: Replica, became: list[str]) -> None:
        with monkeypatch.context() as broken:
            for name in ("put", "remove", "listed"):
                broken.setattr(StoreFiles, name, away)
            first = asked(one, "a", became)
            await asyncio.sleep(0.2)
            with pytest.raises(StoreError, match="away"):
                await two.records.currents.all()
        await until(two, lambda each: len(each) == 1)
        one.worker.fail("a")
        await first
        await until(two, lambda each: not each)

    assert run(tmp_path, body) == ["a 500 failed"]
