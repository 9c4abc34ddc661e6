"""OpenAI's chat completions through its own client: at once, as a stream, with drafts; and everything it refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from starlette.types import ASGIApp

from max_zimage.enhancer.base import Enhancer
from max_zimage.serving.enhancing import EnhancerDesk
from max_zimage.serving.http.app import make_app
from max_zimage.serving.http.chat_body import ELSEWHERE
from max_zimage.serving.http.state import ServerState
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.settings import ServerLimits, ServerSettings
from tests.references.chat_stub import Echo, Silk

QUESTION: list[Any] = [{"role": "system", "content": "backwards"}, {"role": "user", "content": "one two three"}]


def run(enhancer: Enhancer | None, use: Callable[[httpx.AsyncClient], Awaitable[Any]], waiting: int = 4) -> Any:
    """Use a server whose pictures nobody asks for, in this process."""

    async def whole() -> Any:
        desk = None if enhancer is None else EnhancerDesk(enhancer, waiting=waiting)
        if desk is not None:
            await desk.load()
        transport = httpx.ASGITransport(app_with(desk))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await use(client)

    return asyncio.run(whole())


def app_with(desk: EnhancerDesk | None) -> ASGIApp:
    served: Any = SimpleNamespace(name="tiny-zimage", limits=ServerLimits(prompt_characters=60))
    worker = SimpleNamespace(is_ready=True, is_closing=False)
    others: Any = {"dispatcher": worker, "media": None, "records": None, "metrics": Metrics()}
    return make_app(ServerState(settings=ServerSettings(name="x"), served=served, enhancer=desk, **others))


def openai_client(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    http: Any = client  # which its types know under another name
    return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)


def test_an_answer_at_once() -> None:
    async def use(client: httpx.AsyncClient) -> Any:
        api = openai_client(client)
        return await api.chat.completions.create(
            model="echo", messages=QUESTION, seed=3, temperature=0.5, max_tokens=8, user="somebody", n=1
        )

    found = run(Echo(), use)
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "three two one", "stop")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (3, 3, 6)
    assert (found.model, found.object) == ("echo", "chat.completion")


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_stream(limit: str) -> None:
    asked: dict[str, Any] = {"stream_options": {"include_usage": True}, limit: 2}

    async def use(client: httpx.AsyncClient) -> list[Any]:
        stream = await openai_client(client).chat.completions.create(
            model="echo", messages=QUESTION, stream=True, **asked
        )
        return [chunk async for chunk in stream]

    first, *words, last, usage = run(Echo(), use)
    assert first.choices[0].delta.role == "assistant"
    assert [each.choices[0].delta.content for each in words] == ["three", " two"]
    assert last.choices[0].finish_reason == "length"
    assert (usage.choices, usage.usage.completion_tokens) == ([], 2)
    assert len({each.id for each in (first, *words, last, usage)}) == 1


def test_drafts_are_chunks_without_choices() -> None:
    async def use(client: httpx.AsyncClient) -> list[Any]:
        stream = await openai_client(client).chat.completions.create(
            model="echo", messages=QUESTION, stream=True, extra_body={"drafts": True}
        )
        return [chunk async for chunk in stream]

    found = run(Echo(), use)
    assert [each.draft for each in found if not each.choices] == ["three ...", "three two ...", "three two one ..."]
    assert "".join(each.choices[0].delta.content or "" for each in found if each.choices) == "three two one"


def test_parts_of_text_are_one_text() -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]

    async def use(client: httpx.AsyncClient) -> Any:
        return await openai_client(client).chat.completions.create(model="echo", messages=parts)

    assert run(Echo(), use).choices[0].message.content == "two one"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"top_p": 0.5}, "top_p", "top_p: echo draws words in its own way, and honours seed alone; leave it out"),
        ({"top_k": 3}, "top_k", "top_k: echo draws words in its own way"),
        ({"temperature": 3}, "temperature", "temperature: input should be less than or equal to 2, got 3"),
        ({"stop": ["."]}, "stop", "stop: answers end where the model ends them"),
        ({"tools": []}, "tools", "tools: tools are not called here"),
        ({"n": 2}, "n", "n: input should be 1, got 2"),
        ({"seed": -1}, "seed", "seed: input should be greater than or equal to 0"),
        ({"temperatures": 1}, "temperatures", "temperatures: is no field of this route, the nearest is temperature"),
        ({"max_tokens": 9}, "max_tokens", "max_tokens: this server allows at most 8 tokens of an answer, got 9"),
        ({"max_completion_tokens": 9}, "max_completion_tokens", "max_completion_tokens: this server allows at most 8"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens", "and they are 2 and 3; leave one out"),
        ({"drafts": True}, "drafts", "drafts: come with stream; set that too, or leave it out"),
        ({"stream_options": {}}, "stream_options", "stream_options: of a stream; set stream to true"),
        ({"messages": []}, "messages", "messages: list should have at least 1 item"),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            "messages",
            "the last one must be a user's, got one of",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "messages.0.role: input should be"),
        ({"messages": [{"role": "user", "content": "x" * 61}]}, "messages", "allows at most 60 characters, got 61"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
            "messages.0.content: the models of this server read text only, got a part of type 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": "no"}]}, "messages", "messages: echo does not say no"),
        ({"model": "gpt"}, "model", "model: this server writes text with 'echo', not 'gpt'; leave it out"),
    ],
)
def test_what_is_refused(body: dict[str, Any], param: str, message: str) -> None:
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json={"messages": QUESTION} | body)

    answer = run(Echo(), use)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404 if param == "model" else 400, param)
    assert message in error["message"]


def test_each_field_of_sampling_elsewhere_is_refused_by_name() -> None:
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = [{"messages": QUESTION, name: None} for name in ELSEWHERE]
        return [await client.post("/v1/chat/completions", json=body) for body in bodies]

    for name, answer in zip(ELSEWHERE, run(Echo(), use), strict=True):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
        assert answer.json()["error"]["message"].endswith("leave it out")


@pytest.mark.parametrize("enhancer", [None, Silk()])
def test_a_server_that_writes_no_text_says_so(enhancer: Enhancer | None) -> None:
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json={"messages": QUESTION})

    answer = run(enhancer, use)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "chat_not_available")
    assert "this server writes no text: a model of text comes with --enhancer" in error["message"]


def test_one_answer_is_written_at_a_time_and_few_wait() -> None:
    slow = Echo()
    slow.wait = 0.1

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        posts = [client.post("/v1/chat/completions", json={"messages": QUESTION}) for _ in range(3)]
        return list(await asyncio.gather(*posts))

    answers = run(slow, use, waiting=2)
    assert sorted(each.status_code for each in answers) == [200, 200, 429]
    (refused,) = [each for each in answers if each.status_code == 429]
    assert refused.json()["error"]["code"] == "queue_full"
    assert refused.headers["Retry-After"] == "1"


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_has_a_time(streams: bool) -> None:
    late = Echo()
    late.wait, late.seconds = 0.5, 0.1

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": streams})

    answer = run(late, use)
    assert answer.status_code == (200 if streams else 429)
    last = answer.text.strip().split("\n\n")[-1].removeprefix("data: ") if streams else answer.text
    assert json.loads(last)["error"]["message"].startswith("this server gives an answer 0.1 s, and they were over")
