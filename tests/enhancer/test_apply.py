"""A request's prompts written out: which of them, with which words, and what becomes of those that cannot be drawn."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from max_zimage.diffusion_gemma.prepared import prepare_text
from max_zimage.embedded import PATH, TEXT_NAME
from max_zimage.enhancer.apply import applied, prompt_check
from max_zimage.enhancer.base import EnhancerFailed, unchanged, waited_for
from max_zimage.enhancer.chat import ChatAsked, ChatRefused, Message
from max_zimage.enhancer.diffusion import DiffusionEnhancer
from max_zimage.enhancer.settings import EnhancerSettings
from max_zimage.errors import NotFiniteError, RequestError
from max_zimage.request import wire
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.request import GenerationRequest
from max_zimage.text.tokenizer import PromptTokenizer
from tests.references.chat_stub import Silk
from tests.request.test_request import LIMITS, make

TOKENIZER = PromptTokenizer(PATH / "tokenizer")
NOTE = "the prompt is drawn as it was given: silk "


def parameters(request: GenerationRequest, picture: int = 0) -> GenerationParameters:
    return GenerationParameters.of(request, model="m", weight_paths=(), dtype="float32", device="cpu", picture=picture)


def test_each_prompt_becomes_another_and_remembers_what_it_was() -> None:
    silk = Silk()
    asked = make(prompt=["a star", "fail", "a star", ""], negative_prompt="blurred", seed=5, enhance=True)
    done = applied(asked, silk, lambda text: None)
    assert done.request.prompts == ("a star on silk", "fail", "a star on silk", " on silk".strip())
    assert done.request.negative_prompts == ("blurred",) * 4
    assert done.request.original_prompts == asked.prompts
    assert (done.request.enhanced_by, done.request.enhance) == ("silk", False)
    assert done.notes == (f"{NOTE}has no thread left",)
    assert silk.asked == [("a star", 5), ("fail", 5), ("", 5)]  # one that is there twice is written once
    assert wire.of_text(wire.to_text(done.request)).original_prompts == asked.prompts
    first, failed, empty = (parameters(done.request, picture) for picture in (0, 1, 3))
    assert (first.prompt, first.original_prompt, first.enhanced_by) == ("a star on silk", "a star", "silk")
    assert (failed.prompt, failed.original_prompt, failed.enhanced_by) == ("fail", "", "")
    assert (empty.prompt, empty.original_prompt, empty.enhanced_by) == ("on silk", "", "silk")
    for each in (first, failed, empty):
        again = GenerationParameters.from_json(each.to_json())
        assert again == each
        kept = {"prompt": again.prompt, "original_prompt": again.original_prompt, "enhanced_by": again.enhanced_by}
        repeated = parameters(make(negative_prompt="blurred", seed=each.seed, **kept))
        assert repeated == each


def test_words_have_a_seed_of_their_own() -> None:
    silk = Silk()
    done = applied(make(prompt="a star", seed=5, enhance=True, enhance_seed=9), silk, lambda text: None)
    assert silk.asked == [("a star", 9)]
    assert (done.request.seed, done.request.enhance_seed) == (5, None)


def test_a_text_of_too_many_tokens_is_not_taken() -> None:
    asked = make(prompt="a red star", enhance=True, max_sequence_length=20)
    most = prompt_check(asked, TOKENIZER, LIMITS)
    long = Silk()
    long.write = lambda prompt, seed: "a red star " * 20  # type: ignore[method-assign]
    done = applied(asked, long, most)
    assert (done.request.prompts, done.request.original_prompts) == (("a red star",), ())
    (note,) = done.notes
    tokens = len(TOKENIZER.encode(("a red star " * 20).strip()))
    assert note.startswith(f"{NOTE}wrote what cannot be drawn: the enhanced prompt has {tokens} tokens")
    whole = make(prompt="a red star", enhance=True, max_sequence_length=20, long_prompt_mode="pool")
    assert applied(whole, long, prompt_check(whole, TOKENIZER, LIMITS)).notes == ()
    around = make(prompt="a red star", enhance=True, max_sequence_length=40, system_prompt="a red star " * 10)
    assert applied(around, Silk(), prompt_check(around, TOKENIZER, LIMITS)).notes != ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enhance": 1}, "enhance must be true or false, got 1 (int)"),
        ({"enhance_seed": 3}, "enhance_seed would do nothing without enhance; leave it out"),
        ({"enhance": True, "enhance_seed": -1}, "enhance_seed must be from 0 to"),
        ({"enhanced_by": "silk"}, "enhanced_by says who wrote a prompt out; give original_prompt too, or neither"),
        ({"original_prompt": "y"}, "original_prompt goes with enhanced_by, who wrote it out; give both, or neither"),
        ({"original_prompt": ["y", "z"], "enhanced_by": "silk"}, "must be one text for each of 1 prompts, got 2"),
        ({"original_prompt": "y", "enhanced_by": "silk", "enhance": True}, "enhance: the prompt was enhanced already"),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make(prompt="x", **given)
    assert message in str(caught.value)


class Model:
    """In place of `TextDiffusion`: a draft for each word."""

    def __init__(self, name: str) -> None:
        self.name, self.asked = name, list[dict[str, Any]]()

    def room(self, prompt: str) -> int:
        return max(0, 1024 - len(prompt.split())) // 16 * 16

    def generate(self, prompt: str, *, on_draft: Any, **more: Any) -> Any:
        self.asked.append({"prompt": prompt, **more})
        if prompt.endswith("unknown"):
            raise ValueError("no such word")
        if prompt.endswith("overflow"):
            raise NotFiniteError("the text came out as NaN", (), ("a weight",))
        for word in ("a", "red", "star"):
            on_draft(SimpleNamespace(text=word))
        ended = not prompt.endswith("endless")
        return SimpleNamespace(text="a red star", token_ids=(1, 2, 3), prompt_tokens=4, ended=ended)


def diffusion(**settings: Any) -> tuple[DiffusionEnhancer, list[Model]]:
    loaded: list[Model] = []

    def load(name: str) -> Model:
        loaded.append(Model(name))
        return loaded[-1]

    return DiffusionEnhancer(EnhancerSettings(**settings), load), loaded


def test_the_embedded_model_is_given_the_prompt_alone() -> None:
    enhancer, loaded = diffusion(model="embedded")
    assert loaded == []
    assert enhancer.enhance("star", seed=3).text == "a red star"
    assert enhancer.enhance("star", seed=4).by == TEXT_NAME
    assert [each.name for each in loaded] == ["embedded"]  # loaded once
    assert loaded[0].asked == [{"prompt": "star", "seed": 3}, {"prompt": "star", "seed": 4}]
    assert enhancer.enhance("unknown", seed=3).note.endswith("cannot read the prompt: no such word")
    assert "was cut off before its text came to an end" in enhancer.enhance("endless", seed=3).note
    assert "found no words: the text came out as NaN; what may" in enhancer.enhance("overflow", seed=3).note


def test_another_model_is_told_what_to_do(tmp_path: Any) -> None:
    enhancer, loaded = diffusion(model=str(tmp_path), max_tokens=64)
    assert enhancer.enhance("star", seed=3).by == tmp_path.name
    (asked,) = loaded[0].asked
    assert asked["prompt"].startswith("You turn a few words into")
    assert asked["prompt"].endswith("\n\nstar")
    assert asked["max_new_tokens"] == 64


def test_a_draft_that_comes_too_late_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    enhancer, _ = diffusion(model="embedded", seconds=30)
    clock = iter((0.0, 1.0, 31.0))
    monkeypatch.setattr("max_zimage.enhancer.base.time.monotonic", lambda: next(clock))
    found = enhancer.enhance("star", seed=3)
    assert (found.text, found.note.partition("did ")[2]) == ("star", "not answer within 30 s")


def test_a_chat_with_it() -> None:
    enhancer, loaded = diffusion(model="embedded")
    drafts, texts = list[str](), list[str]()
    asked = ChatAsked(
        messages=(Message(role="user", content="star"),), seed=3, max_tokens=16, on_text=texts.append,
        on_draft=drafts.append,
    )  # fmt: skip
    found = enhancer.chat(asked)
    assert (found.text, found.is_whole, found.tokens) == ("a red star", True, 3)
    assert (drafts, texts) == (["a", "red", "star"], ["a red star"])
    assert loaded[0].asked == [{"prompt": "star", "seed": 3, "max_new_tokens": 16}]
    two = ChatAsked(messages=asked.messages * 2, seed=3, max_tokens=16)
    with pytest.raises(ChatRefused, match="reads one message of a user, got 2; leave the others out"):
        enhancer.check(two)
    with pytest.raises(ChatRefused, match="messages: no such word"):
        enhancer.chat(ChatAsked(messages=(Message(role="user", content="unknown"),), seed=3, max_tokens=16))


def test_a_limit_that_nobody_named_leaves_room_for_the_prompt(tmp_path: Any) -> None:
    enhancer, loaded = diffusion(model=str(tmp_path), max_tokens=2048)
    asked = ChatAsked(messages=(Message(role="user", content="star"),), seed=3, max_tokens=enhancer.most_tokens)
    enhancer.chat(asked)
    enhancer.chat(replace(asked, max_tokens=2000))
    assert enhancer.enhance("star", seed=3).text == "a red star"
    told = len(loaded[0].asked[2]["prompt"].split())
    assert [each["max_new_tokens"] for each in loaded[0].asked] == [1008, 2000, (1024 - told) // 16 * 16]


def test_a_chat_is_told_of_the_field_that_it_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    enhancer, _ = diffusion(model="embedded", max_tokens=2048)
    whole = prepare_text()

    def generate(self: Model, prompt: str, *, on_draft: Any, **more: Any) -> None:
        whole.request([prompt], more.pop("seed"), **more)

    monkeypatch.setattr(Model, "generate", generate)
    monkeypatch.setattr(Model, "room", lambda self, prompt: whole.room(prompt))
    too_long, own = "star " * 1100, r"max_tokens \(or max_completion_tokens\) must leave room for the prompt: its 3"
    for content, most, subject, message in (
        ("star", 2000, "max_tokens", own),
        (
            too_long,
            2048,
            "messages",
            r"messages\.0\.content has 1102 tokens, and one canvas of 16 must have room behind",
        ),
    ):
        with pytest.raises(ChatRefused, match=message) as refused:
            enhancer.chat(ChatAsked(messages=(Message(role="user", content=content),), seed=3, max_tokens=most))
        assert refused.value.subject == subject


def test_threads_that_want_it_load_it_once() -> None:
    enhancer, loaded = diffusion(model="embedded")
    threads = [threading.Thread(target=enhancer.enhance, args=("star",), kwargs={"seed": 1}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1
    assert len(loaded[0].asked) == 4


def test_whatever_goes_wrong_the_prompt_is_drawn(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Silk):
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def write(self, prompt: str, seed: int) -> str:
            raise self.error

    found = Broken(KeyError("a fault of ours")).enhance("x", seed=0)
    assert (found.text, found.note) == ("x", f"{NOTE}failed; the log says why")
    assert "a fault of ours" in caplog.text
    with pytest.raises(asyncio.CancelledError):
        Broken(asyncio.CancelledError()).enhance("x", seed=0)
    with pytest.raises(KeyboardInterrupt):
        Broken(KeyboardInterrupt()).enhance("x", seed=0)
    assert Silk().enhance("fail", seed=0).note == f"{NOTE}has no thread left"
    with pytest.raises(EnhancerFailed):
        Silk().write("fail", 0)


def test_a_note_holds_nothing_that_a_terminal_obeys() -> None:
    found = unchanged("x", "silk", "said \x1b[2Jred\x00,\r\n \u202e twice")
    assert found.note == f"{NOTE}said ?[2Jred?, ? twice"


def test_what_nobody_waits_for_ends_at_its_next_step() -> None:
    enhancer, loaded = diffusion(model="embedded")
    answers = iter((True, False))
    with waited_for(lambda: next(answers)):
        found = enhancer.enhance("star", seed=3)
    assert found.text == "star"
    assert "nobody waits any longer" in found.note
    assert next(answers, None) is None  # of three steps two were asked about
    assert enhancer.enhance("star", seed=3).note == ""
    assert len(loaded) == 1
