"""Those who wait for a server's enhancer: while it is loaded, where there is no room, and when they have left."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from typing_extensions import override

from max_zimage.enhancer.base import in_time
from max_zimage.enhancer.chat import ChatAnswer, ChatAsked, Message
from max_zimage.serving.enhancing import EnhancerDesk, Revision
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http import answers
from max_zimage.serving.http.api_names import IMAGES
from max_zimage.serving.http.callers import cors_headers
from max_zimage.serving.http.enhanced import revised
from max_zimage.serving.settings import ServerLimits
from tests.references.chat_stub import Echo
from tests.request.test_request import make
from tests.serving.test_chat import QUESTION, app_with, run

CHAT = ChatAsked(messages=(Message(role="user", content="red"),), seed=1, max_tokens=8)


@pytest.mark.parametrize("streams", [False, True])
def test_where_too_many_wait_the_status_says_so(streams: bool) -> None:
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": streams})

    answer = run(Echo(), use, waiting=0)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert answer.json()["error"]["code"] == "queue_full"


def test_balancers_let_a_stream_through(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Echo()
    slow.wait = 0.3
    patient = functools.partial(answers.kept_alive, seconds=0.05)
    monkeypatch.setattr(answers, "kept_alive", patient)

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True})

    answer = run(slow, use)
    assert (answer.headers["X-Accel-Buffering"], answer.headers["Cache-Control"]) == ("no", "no-store")
    assert ": still here\n\n" in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_fault_within_a_stream_is_its_last_event(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Echo):
        @override
        def chat(self, asked: ChatAsked) -> ChatAnswer:
            asked.on_text("three")
            raise KeyError("a fault of ours")

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True})

    _, word, last = run(Broken(), use).text.removesuffix("\n\n").split("\n\n")
    assert json.loads(word.removeprefix("data: "))["choices"][0]["delta"] == {"content": "three"}
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("internal", "api_error")
    assert "a fault of ours" in caplog.text
    assert "a fault of ours" not in error["message"]


def test_nobody_is_let_in_before_it_is_loaded() -> None:
    class Large(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.may_load = threading.Event()

        @override
        def load(self) -> None:
            assert self.may_load.wait(10)

    async def whole() -> None:
        large = Large()
        desk = EnhancerDesk(large, waiting=4)
        transport = httpx.ASGITransport(app_with(desk))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            loading = asyncio.create_task(desk.load())
            health = await client.get("/readyz")
            assert (health.status_code, health.json()["status"]) == (503, "loading")
            for streams in (False, True):
                answer = await client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": streams})
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
                assert answer.json()["error"]["code"] == "loading"
            with pytest.raises(ApiError, match="the enhancer is being loaded"):
                await desk.revised(make(prompt="a star", enhance=True), lambda text: None)
            large.may_load.set()
            await loading
            assert (await client.get("/readyz")).json()["status"] == "ready"
            answer = await client.post("/v1/chat/completions", json={"messages": QUESTION})
            assert answer.status_code == 200

    asyncio.run(whole())


class Endless(Echo):
    """Writes until it is told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.writes, self.ended = threading.Event(), threading.Event()

    @override
    def chat(self, asked: ChatAsked) -> ChatAnswer:
        return self.endless(asked.on_draft)

    @override
    def write(self, prompt: str, seed: int) -> str:
        return self.endless(in_time(60))

    def endless(self, step: Callable[[str], None]) -> Any:
        self.writes.set()
        try:
            for _ in range(1000):
                step("on")
                time.sleep(0.01)
        finally:
            self.ended.set()
        raise AssertionError("nobody has ended it")


class Leaving:
    """A client that hangs up while it is answered."""

    def __init__(self, enhancer: Endless, body: dict[str, Any]) -> None:
        self.enhancer, self.sent = enhancer, list[Any]()
        self.parts: list[Any] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive(self) -> Any:
        if self.parts:
            return self.parts.pop()
        await asyncio.to_thread(self.enhancer.writes.wait, 10)
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("streams", [False, True])
def test_a_chat_whose_client_has_left_is_not_written_on(streams: bool) -> None:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}

    async def whole() -> None:
        endless = Endless()
        desk = EnhancerDesk(endless, waiting=1)
        client = Leaving(endless, {"messages": QUESTION, "stream": streams})
        await app_with(desk)(scope | {"http_version": "1.1", "scheme": "http"}, client.receive, client.send)
        assert client.sent[0]["status"] == (200 if streams else 499)
        assert await asyncio.to_thread(endless.ended.wait, 5)
        found = await asyncio.wait_for(desk.begin(Echo(), CHAT), 5)  # its place and its turn are free again
        assert found.text == "red"

    asyncio.run(whole())


def test_a_prompt_whose_client_has_left_is_not_written_on() -> None:
    async def whole() -> None:
        endless = Endless()
        desk = EnhancerDesk(endless, waiting=1)
        client = Leaving(endless, {})
        client.parts.clear()
        request = Request({"type": "http"}, client.receive)
        served: Any = SimpleNamespace(limits=ServerLimits(), tokenizer=SimpleNamespace(prompts=None, limits=None))
        with pytest.raises(ApiError, match="the client hung up"):
            await revised(desk, served, make(prompt="a star", enhance=True), IMAGES, request)
        assert await asyncio.to_thread(endless.ended.wait, 5)
        assert (await asyncio.wait_for(desk.begin(Echo(), CHAT), 5)).text == "red"

    asyncio.run(whole())


def test_what_an_api_has_sent_fits_into_a_header() -> None:
    noted = Revision(request=make(prompt="x"), notes=("silk said\n\x00\x1b[2J \N{SNOWMAN} \x7f~",))
    assert noted.headers == {"X-Enhance-Note": "silk said ??[2J ? ?~"}
    assert "X-Enhance-Note" in dict(cors_headers("http://host"))[b"access-control-expose-headers"].decode()
