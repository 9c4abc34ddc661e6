"""An enhancer behind an address: what it is asked, and everything that can go wrong with its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from max_zimage.enhancer.address import MAX_BYTES
from max_zimage.enhancer.base import Enhanced
from max_zimage.enhancer.opening import open_enhancer
from max_zimage.enhancer.settings import KEY_VARIABLE, EnhancerError, EnhancerSettings
from tests.references.chat_stub import ChatStub, chat_stub, completion


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with chat_stub() as running:
        yield running


def enhanced(stub: ChatStub, **more: Any) -> Enhanced:
    settings = EnhancerSettings(model=stub.url, **{"api_model": "writer", **more})
    return open_enhancer(settings, is_embedded=False).enhance("a star", seed=2**40 + 5)


def test_what_is_asked_and_answered(stub: ChatStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "own.md"
    template.write_text("---\nname: own\n---\nSay more.\n")
    monkeypatch.setenv(KEY_VARIABLE, "from-outside")
    found = enhanced(stub, template=str(template), temperature=0.0, top_p=0.5, max_tokens=77)
    assert found == Enhanced(text="a star on silk", by="writer")
    assert stub.asked == [
        {
            "model": "writer",
            "messages": [{"role": "system", "content": "Say more."}, {"role": "user", "content": "a star"}],
            "max_tokens": 77,
            "temperature": 0.0,
            "top_p": 0.5,
            "seed": (2**40 + 5) % 2**31,
            "stream": False,
            "path": "/v1/chat/completions",
        }
    ]
    assert stub.headers["Authorization"] == "Bearer from-outside"
    key = tmp_path / "key"
    key.write_text(" from-a-file\n")
    enhanced(stub, key_file=str(key))
    assert stub.headers["Authorization"] == "Bearer from-a-file"
    monkeypatch.delenv(KEY_VARIABLE)
    enhanced(stub)
    assert "Authorization" not in stub.headers


def test_the_first_model_that_is_listed_is_asked(stub: ChatStub) -> None:
    assert enhanced(stub, api_model="").by == "first"
    assert stub.asked[0]["model"] == "first"
    stub.models = {"data": []}
    assert enhanced(stub, api_model="").note.endswith("an API lists no model; name one as api_model")
    stub.models = {"data": [{"id": 7}]}
    assert "lists a model named 7" in enhanced(stub, api_model="").note


def test_inside_a_loop_of_its_own(stub: ChatStub) -> None:
    async def call() -> Enhanced:
        return enhanced(stub)

    assert asyncio.run(call()).text == "a star on silk"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"content": lambda _: completion("")}, "answered with nothing"),
        ({"content": lambda _: completion(None)}, "answered with nothing"),
        ({"content": lambda _: completion("  \n ")}, "answered with nothing"),
        ({"content": lambda _: completion(["x"])}, "answered with content that is no text"),
        ({"content": lambda _: completion("a long st", "length")}, "was cut off before its text came to an end"),
        (
            {"content": lambda _: completion("x" * 10_001)},
            "answered with 10001 characters, and a prompt may have 10000",
        ),
        ({"content": lambda _: completion("a\0b")}, "a character that no prompt may hold, U+0000"),
        ({"content": lambda _: b'{"choices": [{"message": {"content": "\\ud800"}}]}'}, "may hold, U+D800"),
        ({"content": lambda _: completion("<think>well")}, "answered with thoughts that have no end"),
        ({"content": lambda _: b"x" * (MAX_BYTES + 1)}, f"answered with more than {MAX_BYTES} bytes"),
        ({"content": lambda _: b"not JSON"}, "answered with something that is no JSON"),
        ({"content": lambda _: b"\xff\xfe"}, "answered with something that is no JSON"),
        ({"content": lambda _: b"[" * 100_000}, "answered with something that is no JSON"),
        ({"content": lambda _: b"[]"}, "answered with JSON that is no chat completion"),
        ({"content": lambda _: b'{"choices": [3]}'}, "answered with JSON that is no chat completion"),
        ({"content": lambda _: b'{"choices": []}'}, "answered with JSON that is no chat completion"),
        ({"status": 500, "content": lambda _: b"out of\nmemory"}, "answered with status 500: out of memory"),
        ({"status": 401, "content": lambda _: b"x" * 999}, f"answered with status 401: {'x' * 197}..."),
        ({"status": 302, "location": "/v1/elsewhere"}, "status 302, a redirect, which is not followed"),
    ],
)
def test_no_prompt_comes_of_it(answer: dict[str, Any], reason: str, stub: ChatStub) -> None:
    for name, value in answer.items():
        setattr(stub, name, value)
    found = enhanced(stub)
    assert found.text == "a star"
    assert found.note.startswith("the prompt is drawn as it was given: writer ")
    assert reason in found.note
    assert len(stub.asked) == 1  # and nobody else was asked


@pytest.mark.parametrize(("wait", "pieces"), [(1.5, 1), (0.06, 20)])
def test_an_answer_has_a_time(wait: float, pieces: int, stub: ChatStub) -> None:
    """Whether nothing comes, or one letter after the other."""
    stub.wait, stub.pieces = wait, pieces
    found = enhanced(stub, seconds=0.2)
    assert found.note.endswith("writer did not answer within 0.2 s")


def test_nobody_is_there(stub: ChatStub) -> None:
    gone = EnhancerSettings(model="http://127.0.0.1:1/v1", api_model="writer")
    found = open_enhancer(gone, is_embedded=True).enhance("a star", seed=0)
    assert (found.text, found.note.partition("cannot be reached")[1]) == ("a star", "cannot be reached")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ('"a star"', "a star"),
        ("\N{LEFT DOUBLE QUOTATION MARK}a star\N{RIGHT DOUBLE QUOTATION MARK}", "a star"),
        ('"A" and "B"', '"A" and "B"'),
        ("<think>\nhm\n</think>\n\na star ", "a star"),
        ("a\r\nstar", "a\nstar"),
        ("the words <think>", "the words <think>"),
    ],
)
def test_what_models_put_around_a_prompt_goes(text: str, cleaned: str, stub: ChatStub) -> None:
    stub.content = lambda _: completion(text)
    assert enhanced(stub) == Enhanced(text=cleaned, by="writer")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model": "http://me:secret@host/v1"},
            "address holds a name or a key; put the key into a file, or MAX_ZIMAGE",
        ),
        ({"model": "http:///v1"}, "must be http(s)://HOST[:PORT]/PATH such as .../v1, got 'http:///v1'"),
        ({"model": "https://host/v1?key=1"}, "must be http(s)://HOST[:PORT]/PATH"),
        ({"model": "http://host:port/v1"}, "cannot be read"),
        ({"model": "a red star"}, "there is no enhancer 'a red star': it may be embedded, encoder, a folder of"),
        ({"model": "http://host", "key_file": "no/such/key"}, "key file no/such/key cannot be read"),
        ({"model": "http://host", "template": "no/such.md"}, "no/such.md is missing"),
        ({"model": 3}, "enhancer: model must be a name, a folder or an address, got 3"),
        ({"seconds": 0}, "enhancer: seconds must be above 0 and at most 3600, got 0"),
        ({"seconds": float("nan")}, "enhancer: seconds must be above 0 and at most 3600, got nan"),
        ({"max_tokens": 1.5}, "enhancer: max_tokens must be a whole number, got 1.5"),
        ({"temperature": -1, "top_p": 2}, "enhancer: temperature must be from 0 to 2, got -1\nenhancer: top_p must be"),
        ({"fuzziness": 1}, "an enhancer has no fuzziness; it has model, template, api_model"),
    ],
)
def test_settings_that_do_not_do(given: dict[str, Any], message: str) -> None:
    with pytest.raises(EnhancerError) as caught:
        open_enhancer(given, is_embedded=True)
    assert message in str(caught.value)


def test_a_key_is_one_line_of_plain_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", " \n", "two\nlines", "gr\u00fc\u00dfe"):
        monkeypatch.setenv(KEY_VARIABLE, text)
        with pytest.raises(EnhancerError, match=f"{KEY_VARIABLE} must hold a key of plain letters"):
            open_enhancer("http://host/v1", is_embedded=True)
    template = tmp_path / "empty.md"
    template.write_text("---\nname: x\n---\n")
    with pytest.raises(EnhancerError, match="says nothing; write what a prompt is to become"):
        open_enhancer({"model": "encoder", "template": str(template)}, is_embedded=True)


def test_other_things_are_no_enhancers() -> None:
    with pytest.raises(TypeError, match="enhancer must be an Enhancer, EnhancerSettings or a name, got int"):
        open_enhancer(3, is_embedded=True)  # type: ignore[arg-type]
    with pytest.raises(EnhancerError, match="is no enhancer of its own: no text encoder is loaded here"):
        open_enhancer(None, is_embedded=False)


def test_the_shipped_template_is_told(stub: ChatStub) -> None:
    enhanced(stub)
    system = stub.asked[0]["messages"][0]["content"]
    assert system.startswith("You turn a few words into the description of one picture")
    assert "---" not in system
    assert json.dumps(system)
