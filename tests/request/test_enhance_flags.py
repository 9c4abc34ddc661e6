"""`max-zimage generate --enhance`: what is shown, drawn and repeated, with an API in place of a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage.cli import enhancing, opening
from max_zimage.cli.errors import BadInput
from max_zimage.request.metadata import read_parameters
from tests.references.chat_stub import ChatStub, chat_stub, completion
from tests.request.conftest import Repeat

SMALL = ("--height", "64", "--width", "64", "--steps", "2", "--seed", "3")


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with chat_stub() as running:
        yield running


@pytest.fixture
def api(stub: ChatStub, monkeypatch: pytest.MonkeyPatch) -> ChatStub:
    """One that the environment names, with its model."""
    monkeypatch.setenv("MAX_ZIMAGE_ENHANCER_MODEL", stub.url)
    monkeypatch.setenv("MAX_ZIMAGE_ENHANCER_API_MODEL", "writer")
    return stub


def pixels(file: str) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_a_picture_is_repeated_without_the_enhancer(api: ChatStub, repeat: Repeat, tmp_path: Path) -> None:
    assert repeat("a star", "--enhance", "--enhance-seed", "8", *SMALL, "--output", "first.png") == (0, "")
    kept = read_parameters(tmp_path / "first.png")
    assert (kept.prompt, kept.original_prompt, kept.enhanced_by) == ("a star on silk", "a star", "writer")
    assert [each["seed"] for each in api.asked] == [8]
    api.status = 500
    assert repeat("--from", "first.png", "--output", "again.png") == (0, "")
    assert read_parameters(tmp_path / "again.png") == kept
    np.testing.assert_array_equal(pixels("again.png"), pixels("first.png"))
    assert len(api.asked) == 1
    assert repeat("a ring", "--from", "first.png", "--output", "other.png") == (0, "")
    other = read_parameters(tmp_path / "other.png")
    assert (other.prompt, other.original_prompt, other.enhanced_by) == ("a ring", "", "")
    api.status, api.content = 200, lambda body: completion(f"{body['messages'][-1]['content']} in rain")
    assert repeat("--from", "first.png", "--enhance", "--output", "anew.png") == (0, "")
    anew = read_parameters(tmp_path / "anew.png")
    assert (anew.prompt, anew.original_prompt) == ("a star in rain", "a star")


def test_a_prompt_that_is_not_written_out_is_drawn(api: ChatStub, repeat: Repeat, tmp_path: Path) -> None:
    api.status = 503
    code, told = repeat("a star", "--enhance", *SMALL, "--output", "first.png")
    assert code == 0
    assert told.startswith("max-zimage: warning: the prompt is drawn as it was given: writer answered with status 503")
    assert repeat("a star", *SMALL, "--output", "plain.png") == (0, "")
    assert read_parameters(tmp_path / "first.png") == read_parameters(tmp_path / "plain.png")
    np.testing.assert_array_equal(pixels("first.png"), pixels("plain.png"))


def test_a_prompt_is_shown_and_not_drawn(
    stub: ChatStub, loads_nothing: Repeat, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from max_zimage.cli.main import main

    assert main(["generate", "a star", "--enhance", stub.url, "--show-prompt"]) == 0
    assert capsys.readouterr().out == "a star on silk\n"
    assert main(["generate", "a star", "--enhance", stub.url, "--show-prompt", "--json"]) == 0
    said = {"prompt": "a star on silk", "original_prompt": "a star", "enhanced_by": "first", "notes": []}
    assert json.loads(capsys.readouterr().out) == said
    stub.status = 500
    assert main(["generate", "a star", "--enhance", stub.url, "--show-prompt", "--json", "--quiet"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["prompt"], shown["original_prompt"], shown["enhanced_by"]) == ("a star", "", "")
    assert shown["notes"][0].startswith("the prompt is drawn as it was given")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "by"), [("a star on silk", "writer"), ("a star on velvet", "writer, edited"), ("", None), (None, None)]
)
def test_on_a_terminal_it_may_be_edited(
    line: str | None, by: str | None, api: ChatStub, repeat: Repeat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(enhancing, "edited", lambda text, terminal: line)
    code, told = repeat("a star", "--enhance", "--show-prompt", *SMALL, "--output", "first.png")
    assert code == 0
    if by is None:
        assert told == "max-zimage: nothing is drawn\n"
        assert list(tmp_path.iterdir()) == []
        return
    kept = read_parameters(tmp_path / "first.png")
    assert (kept.prompt, kept.original_prompt, kept.enhanced_by) == (line, "a star", by)


def test_llm_dits_flags_of_its_rewriter(
    stub: ChatStub, loads_nothing: Repeat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from max_zimage.cli.main import main

    monkeypatch.setenv("MAX_ZIMAGE_ENHANCER_MODEL", "http://nobody.invalid/v1")  # below which flags do not stand
    monkeypatch.setenv("MAX_ZIMAGE_REWRITER_TOP_P", "0.5")
    flags = ["--rewriter-use-api", "--rewriter-api-url", stub.url.removesuffix("/v1"), "--rewriter-api-model", "second"]
    flags += ["--rewriter-temperature", "0", "--rewriter-max-tokens", "33", "--rewriter-timeout", "9"]
    assert main(["generate", "a star", "--enhance", "--show-prompt", *flags]) == 0
    assert capsys.readouterr().out == "a star on silk\n"
    (asked,) = stub.asked
    assert [asked[name] for name in ("model", "temperature", "top_p", "max_tokens")] == ["second", 0, 0.5, 33]
    assert main(["config", "show", "--json", "generate", "a star", "--enhance", *flags]) == 0
    shown = {
        each["key"]: each for each in json.loads(capsys.readouterr().out)["settings"] if each["section"] == "enhancer"
    }
    assert (shown["seconds"]["value"], shown["seconds"]["origin"]) == (9, "flag --rewriter-timeout")
    assert (shown["top_p"]["value"], shown["top_p"]["origin"]) == (0.5, "MAX_ZIMAGE_REWRITER_TOP_P")
    assert (shown["model"]["value"], shown["top_k"]["origin"]) == (stub.url, "default")
    assert main(["info", "--rewriter-top-k", "3"]) == 2
    assert "--rewriter-top-k: prompts are written out by generate, batch and serve" in capsys.readouterr().err


def test_a_server_without_an_enhancer_refuses_what_says_how_it_writes() -> None:
    from max_zimage.cli.main import _parser

    nobody: Any = SimpleNamespace(enhancer=None)
    for words in (("--enhancer-template", "x.md"), ("--rewriter-top-k", "3")):
        with pytest.raises(BadInput, match=f"^{words[0]} would do nothing without --enhancer; give that too"):
            opening._enhancer(nobody, _parser().parse_args(["serve", *words]))


def test_what_is_configured_is_checked_though_nobody_asks(
    loads_nothing: Repeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_ZIMAGE_ENHANCER_MAX_TOKENS", "0")
    code, told = loads_nothing("a star")
    assert (code, told) == (2, "max-zimage: error: enhancer: max_tokens must be from 1 to 8192, got 0\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--show-prompt",), "--show-prompt would do nothing without --enhance; give that too, or leave it out"),
        (("--enhance-template", "x.md"), "--enhance-template would do nothing without --enhance"),
        (("--enhance-seed", "3"), "--enhance-seed would do nothing without --enhance; leave it out"),
        (("--rewriter-temperature", "0"), "--rewriter-temperature would do nothing without --enhance; give that too"),
        (("--enhance", "--rewriter-use-api"), "flag --rewriter-use-api asks for an API and there is none; give [rewr"),
        (("--enhance", "--rewriter-top-p", "2"), "enhancer: top_p must be above 0 and at most 1, got 2.0"),
        (
            ("--enhance", "--rewriter-use-api", "--rewriter-api-url", "mac"),
            "--rewriter-api-url must be an http(s) addr",
        ),
        (
            ("--enhance", "encoder", "--rewriter-api-url", "http://mac"),
            "--enhance encoder and --rewriter-api-url both name an enhancer; leave one out",
        ),
        (("--enhance", "a red star"), "there is no enhancer 'a red star'"),
        (("--enhance", ""), "--enhance is empty; give it a value, or leave it out"),
        (("--enhance", "http://me@host"), "address holds a name or a key"),
        (("--enhance", "http://host/v1", "--enhance-template", "x.md"), "x.md is missing"),
        (("--encoder-only", "--save-embeddings", "x.safetensors", "--show-prompt"), "--show-prompt is about a picture"),
        (("--encoder-only", "--save-embeddings", "x.safetensors", "--enhance"), "--enhance: of a picture"),
        (
            ("--encoder-only", "--save-embeddings", "x.safetensors", "--rewriter-top-k", "3"),
            "--rewriter-top-k is about a picture",
        ),
    ],
)
def test_flags_that_do_not_do(flags: tuple[str, ...], message: str, loads_nothing: Repeat) -> None:
    code, told = loads_nothing("a star", *flags)
    assert code == 2
    assert message in told
