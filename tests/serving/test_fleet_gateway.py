"""The gateway of a fleet before replicas that are made up: what it passes on, asks again and refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from max_zimage.serving.ray_serve.call import NOT_SERVING, Call
from max_zimage.serving.ray_serve.shapes import read, shape_of

ray_exceptions = pytest.importorskip("ray.exceptions")
from ray.serve._private.common import DeploymentID  # noqa: E402
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError  # noqa: E402

from max_zimage.serving.ray_serve.door import Door  # noqa: E402
from max_zimage.serving.ray_serve.gateway import Gateway  # noqa: E402


class Handle:
    """A deployment's handle whose replicas answer as they are told, one after another.

    Args:
        answers: Messages of each replica that is asked, or what it raises.
    """

    def __init__(self, *answers: Any) -> None:
        self.calls: list[Call] = []
        self.answers, self.cancelled = list(answers), 0
        self.answer = self
        self.pages: list[Any] = []

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, call: Call) -> Handle:
        self.calls.append(call)
        self._said = self._say(self.answers.pop(0))
        return self

    def broadcast(self, method: str, call: Call) -> Handle:
        assert (method, call.scope["method"]) == ("whole", "GET")
        return self

    async def results_async(self, **_: Any) -> list[Any]:
        return self.pages

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._said

    def __anext__(self) -> Any:
        return self._said.__anext__()

    def cancel(self) -> None:
        self.cancelled += 1

    async def _say(self, answer: Any) -> AsyncIterator[Any]:
        for message in answer:
            if isinstance(message, Exception):
                raise message
            if callable(message):
                await message()
            else:
                yield message


def ok(content: bytes = b"{}", kind: bytes = b"application/json") -> list[Any]:
    headers = [(b"content-type", kind), (b"x-request-id", b"twice")]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    return [start, {"type": "http.response.body", "body": content, "more_body": False}]


DEAD = ray_exceptions.ActorDiedError()
SILENT = [{"type": NOT_SERVING}]


def ask(handle: Handle, method: str = "POST", path: str = "/v1/images/generations", **given: Any) -> httpx.Response:
    """What a client is told by a gateway, without its pauses."""
    key, limit = given.pop("key", None), given.pop("limit", 1000)
    encoding = given.pop("encoding", None)

    async def asked() -> httpx.Response:
        gateway: Any = Gateway(handle, Door(key, limit), encoding, 60.0)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
            return await client.request(method, path, **given)

    return asyncio.run(asked())


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("max_zimage.serving.ray_serve.gateway._PAUSE", 0.0)


def code(answer: httpx.Response) -> tuple[int, str, bool]:
    return answer.status_code, answer.json()["error"]["code"], "retry-after" in answer.headers


def test_an_answer_is_passed_on_and_named_once() -> None:
    handle = Handle(ok(b'{"data": []}'))
    answer = ask(handle, json={"prompt": "a", "steps": 3}, headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()) == (200, {"data": []})
    assert "x-request-id" not in answer.headers  # Ray's proxy adds it
    (call,) = handle.calls
    assert (call.shape, call.body) == (shape_of(read(call.body)), b'{"prompt":"a","steps":3}')
    assert dict(call.scope["headers"])[b"x-request-id"] == b"mine"


@pytest.mark.parametrize(
    ("answers", "fields", "told"),
    [
        ([[DEAD], ok()], {"seed": 3}, 200),
        ([[DEAD]], {}, (502, "replica_died", False)),
        ([[DEAD]], {"seed": -1}, (502, "replica_died", False)),
        ([SILENT, [DEAD], ok()], {"seed": 0}, 200),
        ([[DEAD], [DEAD], [DEAD]], {"seed": 3}, (502, "replica_died", False)),
        ([SILENT, ok()], {}, 200),
        ([SILENT, SILENT, SILENT], {}, (503, "no_replica", True)),
        ([[BackPressureError(num_queued_requests=1, max_queued_requests=1)]], {"seed": 3}, (503, "fleet_full", True)),
        ([[DeploymentUnavailableError(DeploymentID("pictures"))]], {}, (503, "no_replica", True)),
    ],
)
def test_replicas_that_do_not_answer(answers: list[Any], fields: dict[str, Any], told: Any) -> None:
    handle = Handle(*answers)
    answer = ask(handle, json={"prompt": "a", **fields}, headers={"X-Request-ID": "mine"})
    assert (answer.status_code if told == 200 else code(answer)) == told
    assert handle.answers == []
    names = [dict(call.scope["headers"])[b"x-request-id"] for call in handle.calls]
    deaths = [answers[:number].count([DEAD]) for number in range(len(names))]
    assert [name == b"mine" for name in names] == [number == 0 for number in deaths]
    assert len({*names}) == len({*deaths})  # another replica would take the same id for the lost request


def test_what_breaks_in_the_middle_is_not_asked_again() -> None:
    start, event = ok(b"event: x\n\n", b"text/event-stream")
    answer = ask(Handle([start, event | {"more_body": True}, DEAD]), json={"prompt": "a", "seed": 3})
    first, last = answer.text.split("\n\n")[:2]
    assert first == "event: x"
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "replica_died"
    start, part = ok(b"half")
    with pytest.raises(Exception, match="replica that had this request died"):  # the connection breaks off
        ask(Handle([start, part | {"more_body": True}, DEAD]), json={"prompt": "a", "seed": 3})


def test_who_hangs_up_cancels_the_call() -> None:
    handle = Handle([asyncio.Event().wait])

    async def hung_up() -> None:
        received = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

        async def receive() -> Any:
            try:
                return next(received)
            except StopIteration:
                await asyncio.sleep(0.05)
                return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/images/generations", "headers": []}
        async with asyncio.timeout(10):
            await Gateway(handle, Door(None, 1000), None, 60.0)(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(hung_up())
    assert handle.cancelled == 1


def test_the_door_is_before_the_replicas() -> None:
    handle = Handle()
    assert code(ask(handle, json={"prompt": "a"}, key="secret")) == (401, "invalid_api_key", False)
    assert code(ask(handle, content=b"x" * 1001)) == (413, "body_too_large", False)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 400

    assert code(ask(handle, content=pieces())) == (413, "body_too_large", False)
    assert ask(handle, "GET", "/livez").json() == {"status": "alive"}
    assert handle.calls == []
    assert ask(Handle(SILENT), "GET", "/readyz").status_code == 503
    right = {"Authorization": "Bearer secret"}
    assert ask(Handle(ok()), json={"prompt": "a"}, key="secret", headers=right).status_code == 200
    assert ask(Handle(ok()), "OPTIONS", key="secret").status_code == 200
    assert code(ask(handle, "OPTIONS", key="secret", content=b"x")) == (413, "body_too_large", False)
    assert code(ask(handle, "OPTIONS", key="secret", content=pieces())) == (413, "body_too_large", False)
    assert handle.calls == []


def test_bodies_take_up_room_until_they_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("max_zimage.serving.ray_serve.door._BODIES", 1)

    async def asked() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        begun, go = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            begun.set()
            await go.wait()

        handle = Handle([wait, *ok()], ok())
        gateway: Any = Gateway(handle, Door(None, 100), None, 60.0)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
            first = asyncio.create_task(client.post("/v1/images/generations", content=b"x" * 60))
            await begun.wait()
            refused = await client.post("/v1/images/generations", content=b"x" * 60)
            go.set()
            return await first, refused, await client.post("/v1/images/generations", content=b"x" * 60)

    first, refused, last = asyncio.run(asked())
    assert (first.status_code, code(refused), last.status_code) == (200, (503, "too_many_bodies", True), 200)


def test_a_fleet_draws_as_long_as_one_replica_does() -> None:
    loading = ok(b'{"status": "loading"}')
    loading[0]["status"] = 503
    for first in (loading, SILENT, [DEAD]):
        handle = Handle(first)
        handle.pages = [DEAD, ("a", 503, b""), ("b", 200, b'{"status": "ready"}')]
        answer = ask(handle, "GET", "/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
        handle.answers, handle.pages = [first], [("a", 503, b""), DEAD]
        assert ask(handle, "GET", "/readyz").status_code == 503
    assert ask(Handle(ok()), "GET", "/readyz").status_code == 200
