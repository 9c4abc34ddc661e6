"""Requests by their ids while their prompts are written out: an enhancer and a worker that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from max_zimage.serving.enhancing import Revision
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http import routes_images
from max_zimage.serving.http import state as state_module
from max_zimage.serving.http.app import make_app
from max_zimage.serving.http.state import ServerState
from max_zimage.serving.settings import ServerLimits, ServerSettings
from max_zimage.serving.store.records import RequestRecords
from tests.serving.test_dispatcher import context, outcome, settled
from tests.serving.test_records import Replica, becomes, with_replicas


class Client:
    """Of a server in this process, whose enhancer is done when it is let."""

    def __init__(self, http: httpx.AsyncClient, replica: Replica) -> None:
        self.http, self.worker, self.queue = http, replica.worker, replica.queue
        self.written = asyncio.Event()
        self.revisions = 0

    def draw(self, name: str) -> asyncio.Task[httpx.Response]:
        headers = {"X-Request-ID": name}
        return asyncio.create_task(self.http.post("/v1/images/generations", headers=headers, json={"prompt": "x"}))

    async def status(self, name: str) -> str:
        answer = await self.http.get(f"/v1/requests/{name}")
        return str(answer.json()["status"]) if answer.status_code == 200 else str(answer.status_code)

    async def until(self, name: str, status: str) -> None:
        for _ in range(200):
            if await self.status(name) == status:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} stands at {await self.status(name)}, not at {status}")


def run(monkeypatch: pytest.MonkeyPatch, use: Callable[[Client], Awaitable[None]]) -> None:
    async def whole() -> None:
        replica = Replica("memory")
        served: Any = SimpleNamespace(name="tiny-zimage", limits=ServerLimits())
        others: Any = {"media": None, "enhancer": SimpleNamespace(chat_model=None), "records": replica.records}
        others |= {"dispatcher": replica.queue, "metrics": replica.metrics, "was_ready": True}
        state = ServerState(settings=ServerSettings(name="x"), served=served, **others)
        transport = httpx.ASGITransport(make_app(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            client = Client(http, replica)

            async def revised(enhancer: object, served: object, asked: Any, *others: object) -> Revision:
                client.revisions += 1
                await client.written.wait()
                return Revision(request=asked, prompt="x on silk")

            asked = SimpleNamespace(enhance=True)
            monkeypatch.setattr(state_module, "revised", revised)
            monkeypatch.setattr(routes_images, "asked_of_image_request", lambda *given: asked)
            monkeypatch.setattr(routes_images, "context_of_image_request", lambda *given: context("x"))
            async with replica.running():
                await use(client)

    asyncio.run(whole())


def test_a_request_is_cancelled_while_its_prompt_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(client: Client) -> None:
        first = client.draw("a")
        await client.until("a", "enhancing")
        second = await client.draw("a")
        assert (second.status_code, second.json()["error"]["code"]) == (409, "duplicate_id")
        assert client.revisions == 1  # it was refused before a prompt was written
        answer = await client.http.delete("/v1/requests/a")
        assert (answer.status_code, answer.json()) == (200, {"id": "a", "status": "cancelled"})
        answered = await first
        assert (answered.status_code, answered.json()["error"]["code"]) == (499, "cancelled")
        assert await client.status("a") == "cancelled"
        assert (await client.http.delete("/v1/requests/a")).status_code == 404
        client.written.set()
        await settled()
        assert client.queue.jobs == []  # and it is not drawn

    run(monkeypatch, use)


def test_it_is_the_same_request_until_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(client: Client) -> None:
        first = client.draw("a")
        await client.until("a", "enhancing")
        client.written.set()
        await client.until("a", "queued")
        client.worker.say("x", 1)
        await client.until("a", "running")
        client.worker.finish("x")
        assert (await first).status_code == 200
        await client.until("a", "done")

    run(monkeypatch, use)


def test_a_request_that_cannot_be_queued_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(client: Client) -> None:
        first = client.draw("a")
        await client.until("a", "enhancing")
        client.queue.close()
        client.written.set()
        assert (await first).status_code == 503
        assert await client.status("a") == "failed"

    run(monkeypatch, use)


async def waiting(records: RequestRecords, name: str, became: list[object]) -> None:
    """A request whose prompt is being written out for as long as it is let; what becomes of it."""
    try:
        with records.unqueued.known(name) as request:
            await request.waits_for(asyncio.Event().wait())
    except ApiError as error:
        became.append(f"{error.status} {error.code}")


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_request_is_known_while_its_prompt_is_written_out(kind: str, tmp_path: Path) -> None:
    """It can be asked for, ended and not doubled, as one that is queued; through the other replica, too."""

    async def body() -> None:
        address = "memory" if kind == "memory" else f"file://{tmp_path}/state"
        one = Replica(address)
        two = one if kind == "memory" else Replica(address)
        became: list[object] = []
        async with one.running(), two.running():
            for asked in (one, two):
                task = asyncio.create_task(waiting(one.records, "a", became))
                for replica in (one, two):
                    found = await becomes(replica.records, "a", status="enhancing")
                    assert found == {"id": "a", "status": "enhancing"}
                    with pytest.raises(ApiError, match="a request with the id a is not done yet"):
                        await replica.records.check_free("a")
                await waiting(one.records, "a", became)
                assert await asked.records.cancel("a") == "cancelled"
                await task
                assert became == ["409 duplicate_id", "499 cancelled"]
                became.clear()
                for replica in (one, two):
                    found = await becomes(replica.records, "a", status="cancelled")
                    assert (found["error"]["code"], set(found)) == ("cancelled", {"id", "status", "seconds", "error"})
                    assert await replica.records.cancel("a") is None
                    await replica.records.check_free("a")
        assert one.metrics.cancellations.labels("api")._value.get() == 2

    asyncio.run(body())


def test_a_request_whose_client_leaves_meanwhile_is_cancelled(tmp_path: Path) -> None:
    async def body(one: Replica, two: Replica) -> None:
        task = asyncio.create_task(waiting(one.records, "a", []))
        await becomes(two.records, "a", status="enhancing")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await becomes(two.records, "a", status="cancelled"))["error"]["message"].endswith("its client hung up")

    with_replicas(tmp_path, body)


def test_a_wish_to_end_a_request_holds_when_it_is_queued_meanwhile(tmp_path: Path) -> None:
    async def body(one: Replica, two: Replica) -> None:
        with one.records.unqueued.known("a") as request:
            await becomes(two.records, "a", status="enhancing")
            await two.store.ask_to_cancel("a", request.run)
            job = one.queue.submit(context("a"), "a", request.run)
        assert await outcome(one.queue, job) == "499 cancelled"

    with_replicas(tmp_path, body)
