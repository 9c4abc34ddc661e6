"""`enhance` over HTTP: the server's enhancer is an API here, which a request can neither name nor see."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from max_zimage.images.texts import embedded_text
from max_zimage.request.metadata import GenerationParameters, parameters_of_text
from tests.references.chat_stub import ChatStub, chat_stub, completion
from tests.references.servers import Server, error_of

SMALL: dict[str, Any] = {"size": "64x64", "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def stub() -> Iterator[ChatStub]:
    with chat_stub() as running:
        yield running


@pytest.fixture(scope="module")
def enhancing(stub: ChatStub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environment = {"MAX_ZIMAGE_ENHANCER_API_MODEL": "writer", "MAX_ZIMAGE_ENHANCER_SECONDS": "5"}
    environment["MAX_ZIMAGE_GENERATION_ENHANCE"] = "true"
    folder = tmp_path_factory.mktemp("enhancing")
    flags = ["--enhancer", stub.url, "--max-prompt-characters", "200"]
    with Server(folder, flags, environment=environment) as running:
        yield running


@pytest.fixture(autouse=True)
def usual(stub: ChatStub) -> None:
    fresh = ChatStub()
    stub.status, stub.content, stub.wait = fresh.status, fresh.content, fresh.wait
    stub.asked.clear()


def parameters(item: dict[str, Any]) -> GenerationParameters:
    content = base64.b64decode(item["b64_json"])
    return parameters_of_text(content, embedded_text(content))


def test_the_prompt_that_is_drawn_is_answered(enhancing: Server, stub: ChatStub) -> None:
    found = enhancing.draw("a star", **SMALL, enhance=True, n=2).json()
    assert [each["revised_prompt"] for each in found["data"]] == ["a star on silk"] * 2
    assert "warnings" not in found
    kept = parameters(found["data"][0])
    assert (kept.prompt, kept.original_prompt, kept.enhanced_by) == ("a star on silk", "a star", "writer")
    assert [each["seed"] for each in stub.asked] == [3]
    plain = enhancing.draw("a star on silk", **SMALL, enhance=False, metadata=False).json()
    bare = enhancing.draw("a star", **SMALL, enhance=True, enhance_seed=9, metadata=False).json()
    assert bare["data"][0]["b64_json"] == plain["data"][0]["b64_json"]
    assert stub.asked[-1]["seed"] == 9
    assert "revised_prompt" not in plain["data"][0]


def test_through_the_client_of_openai(enhancing: Server) -> None:
    client = openai.OpenAI(base_url=f"{enhancing.url}/v1", api_key="none")
    found = client.images.generate(prompt="a star", size="64x64", extra_body={"steps": 2, "enhance": True})
    assert found.data is not None
    assert found.data[0].revised_prompt == "a star on silk"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 500}, "writer answered with status 500"),
        ({"content": lambda _: completion("")}, "writer answered with nothing"),
        (
            {"content": lambda _: completion("x" * 201)},
            "the enhanced prompt has 201 characters, and this server allows",
        ),
        (
            {"content": lambda _: completion("red " * 45), "_tokens": 40},
            "wrote what cannot be drawn: the enhanced prompt",
        ),
    ],
)
def test_a_fallback_says_so(answer: dict[str, Any], reason: str, enhancing: Server, stub: ChatStub) -> None:
    tokens = answer.pop("_tokens", None)
    for name, value in answer.items():
        setattr(stub, name, value)
    limit = {} if tokens is None else {"max_sequence_length": tokens}
    found = enhancing.draw("a star", **SMALL, **limit, enhance=True).json()
    assert "revised_prompt" not in found["data"][0]
    (warning,) = found["warnings"]
    assert warning.startswith("the prompt is drawn as it was given: writer ")
    assert reason in warning
    assert parameters(found["data"][0]).prompt == "a star"


def test_events_say_it_too(enhancing: Server, stub: ChatStub) -> None:
    body = {"prompt": "a star", **SMALL, "enhance": True, "stream": True}
    last = json.loads(enhancing.post("/v1/images/generations", **body).text.strip().split("data: ")[-1])
    assert (last["type"], last["revised_prompt"]) == ("image_generation.completed", "a star on silk")
    stub.status = 500
    last = json.loads(enhancing.post("/v1/images/generations", **body).text.strip().split("data: ")[-1])
    assert "revised_prompt" not in last
    assert "status 500" in last["warnings"][0]


def test_other_routes(enhancing: Server, stub: ChatStub) -> None:
    picture = enhancing.draw("x", **SMALL, enhance=False).json()["data"][0]["b64_json"]
    url = f"data:image/png;base64,{picture}"
    edited = enhancing.post("/v1/images/edits", prompt="a star", image=url, **SMALL, enhance=True).json()
    assert edited["data"][0]["revised_prompt"] == "a star on silk"
    body: dict[str, Any] = {
        "model": "tiny-zimage",
        "input": "a star",
        "seed": 3,
        "metadata": {"enhance": "true", "note": "kept"},
    }
    body["provider_options"] = {"image": {"height": 128, "width": 128, "steps": 2}}
    answer = enhancing.post("/v1/responses", **body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["metadata"] == {"enhance": "true", "note": "kept", "revised_prompt": "a star on silk"}
    stub.status = 500
    answered = enhancing.post("/v1/responses", **body).json()
    assert "status 500" in answered["metadata"]["warnings"]


@pytest.mark.parametrize(
    ("path", "more"), [("/api/generate", {}), ("/sdapi/v1/txt2img", {"cfg_scale": 1}), ("/v1/images/generations", {})]
)
def test_every_prompt_is_written_out_where_that_is_configured(
    path: str, more: dict[str, Any], enhancing: Server, stub: ChatStub
) -> None:
    """By routes whose bodies have no field for it, too; they say in a header where one was not."""
    size = {"size": "64x64"} if path.startswith("/v1") else {"width": 64, "height": 64}
    body = {"prompt": "a star", **size, "steps": 2, "seed": 3, **more}

    def drawn() -> tuple[GenerationParameters, str | None]:
        answer = enhancing.post(path, **body)
        assert answer.status_code == 200, answer.text
        content = answer.content
        if path != "/api/generate":
            found = answer.json()
            content = base64.b64decode(found["images"][0] if "images" in found else found["data"][0]["b64_json"])
        return parameters_of_text(content, embedded_text(content)), answer.headers.get("X-Enhance-Note")

    kept, note = drawn()
    assert (kept.prompt, kept.original_prompt, note) == ("a star on silk", "a star", None)
    stub.status = 500
    kept, note = drawn()
    assert (kept.prompt, kept.enhanced_by) == ("a star", "")
    if not path.startswith("/v1"):  # where the body says it
        assert note is not None
        assert "writer answered with status 500" in note


def test_what_it_can_do_is_said(enhancing: Server, server: Server) -> None:
    found = enhancing.client.get("/v1/capabilities").json()
    assert (found["enhancer"], found["features"]["enhance"], found["features"]["chat"]) == ("writer", True, False)
    without = server.client.get("/v1/capabilities").json()
    assert (without["enhancer"], without["features"]["enhance"], without["features"]["chat"]) == (None, False, False)
    refused: httpx.Response = server.draw("a star", **SMALL, enhance=True)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "enhance")
    assert "this server has no enhancer; have it started with --enhancer" in error_of(refused)["message"]
    for body in ({"enhance": "http://host"}, {"enhance": True, "enhancer": "http://host"}):
        assert enhancing.draw("a star", **SMALL, **body).status_code == 400


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--enhancer", "no/such/folder"], "there is no enhancer 'no/such/folder'"),
        (["--enhancer-template", "x.md"], "--enhancer-template would do nothing without --enhancer"),
        (["--enhancer", "http://host/v1", "--enhancer-template", "no-such.md"], "no-such.md is missing"),
    ],
)
def test_a_server_that_cannot_have_one_does_not_start(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from max_zimage.cli.main import main

    assert main(["serve", "--port", "0", *flags]) == 2
    assert message in capsys.readouterr().err
