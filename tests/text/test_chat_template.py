"""Templates and tokenizers that would fail with every prompt, or draw the same for all: said when they are loaded."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from max_zimage import ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.text.tokenizer import Around, PromptTokenizer, TokenizerError
from tests.references.checkpoints import BOM, TEMPLATE, changed, copied

USUAL = "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n"


def with_template(tmp_path: Path, template: str) -> Path:
    folder = Path(shutil.copytree(EMBEDDED / "tokenizer", tmp_path / "tokenizer"))
    (folder / "chat_template.jinja").write_text(template, newline="")
    return folder


def with_tokenizer(tmp_path: Path, change: Any) -> Path:
    folder = with_template(tmp_path, USUAL)
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('a system message\nis needed') }}", "message: a system message is needed; fetch it again"),
        ("{{ raise_exception('no') if not messages[0].content }}" + USUAL, "cannot hold a single user message: no"),
        ("{{ messages[1].content }}", "cannot hold a single user message"),
        ("{{ messages[0].content + 1 }}", "cannot hold a single user message"),
        ("{{ 1 / 0 }}", "cannot hold a single user message: division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too deep a recursion"),
        ("{% include 'other' %}", "cannot hold a single user message"),
        ("{% for a in range(10**9) %}x{% endfor %}", "cannot hold a single user message: Range too big"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = 1 %}{% endfor %}{% endfor %}",
            "it does not come to an end within 1000000 steps",
        ),
        ("{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}", "come to an end"),
        ("{{ 'x' * 10**12 }}", "* makes something too large"),
        ("{{ [0] * (10**12) }}", "* makes something too large"),
        ("{{ 9 ** 99999999 }}", "** makes something too large"),
        ("", 'leaves the prompt out: "a red star" becomes ""'),
        ("always the same", 'leaves the prompt out: "a red star" becomes "always the same"'),
        ("{{ messages[0].content | upper }}", 'leaves the prompt out: "a red star" becomes "A RED STAR"'),
        ("{{ messages[0].content }}", 'makes no token of ""; there is nothing to draw from'),
        ("{% endfor %}", "is not valid: Encountered unknown tag 'endfor'"),
    ],
)
def test_a_template_that_does_not_do(tmp_path: Path, template: str, says: str) -> None:
    folder = with_template(tmp_path, template)
    begin = time.monotonic()
    with pytest.raises(TokenizerError) as caught:
        PromptTokenizer(folder)
    assert says in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 60


def test_nothing_is_traced_behind_a_template(tmp_path: Path) -> None:
    before = sys.gettrace()
    tokenizer = PromptTokenizer(with_template(tmp_path, USUAL))
    traces: list[object] = []
    thread = threading.Thread(target=lambda: traces.append((tokenizer.encode("x") is None, sys.gettrace())))
    thread.start()
    thread.join()
    assert sys.gettrace() is before
    assert traces == [(False, None)]


def test_a_long_prompt_takes_no_more_steps(tmp_path: Path) -> None:
    prompt = "a red star on a blue background, " * 10_000
    assert prompt in PromptTokenizer(EMBEDDED / "tokenizer").render(prompt)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_change_no_token(tmp_path: Path, end: str) -> None:
    """Transformers reads the same line ends; it would make tokens of the mark, which nobody wrote on purpose."""
    template = "{% for message in messages %}\n<|im_start|>{{ message.content }}\n\n{% endfor %}\n{{ 'a\nb' }}\n"
    plain = PromptTokenizer(with_template(tmp_path / "plain", template)).encode("a star").tolist()
    folder = with_template(tmp_path, template.replace("\n", end))
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": "user", "content": "a star"}]
    text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert PromptTokenizer(folder).encode("a star").tolist() == plain == reference(text).input_ids
    (folder / "chat_template.jinja").write_bytes(BOM + (folder / "chat_template.jinja").read_bytes())
    assert PromptTokenizer(folder).encode("a star").tolist() == plain


def test_a_mark_inside_the_configuration_is_none_either(tmp_path: Path) -> None:
    folder = with_template(tmp_path, USUAL)
    plain = PromptTokenizer(folder).encode("a star").tolist()
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "\ufeff" + USUAL}))
    assert PromptTokenizer(folder).encode("a star").tolist() == plain


@pytest.mark.parametrize("template", [3, [], [{"name": "default"}], {"default": "x"}, True])
def test_a_template_that_is_no_text(tmp_path: Path, template: Any) -> None:
    folder = with_template(tmp_path, USUAL)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(
        TokenizerError, match=r"no chat template: there is no .*chat_template\.jinja, and tokenizer_con"
    ):
        PromptTokenizer(folder)


@pytest.mark.parametrize("token", [3, True, ["<s>"], {"lstrip": False}])
def test_a_named_token_that_is_no_text(tmp_path: Path, token: Any) -> None:
    folder = with_template(tmp_path, USUAL)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": token}))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: bos_token must be a string or an object with"):
        PromptTokenizer(folder)


def added(number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": f"<|token {number}|>", "special": True, **flags}


def template_of_ids(*ids: int) -> dict[str, Any]:
    special = {"<x>": {"id": "<x>", "ids": list(ids), "tokens": ["<x>"] * len(ids)}}
    pieces = [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": special}


@pytest.mark.parametrize(
    ("change", "highest"),
    [
        (lambda content: content["added_tokens"].append(added(408)), 408),
        (lambda content: content["model"]["vocab"].update({"far away": 5000}), 5000),  # the number of ids stays below
        (lambda content: content.update(post_processor=template_of_ids(70000)), 70000),  # in no vocabulary
    ],
)
def test_ids_without_an_embedding(tmp_path: Path, change: Any, highest: int) -> None:
    folder = with_tokenizer(tmp_path, change)
    assert PromptTokenizer(folder, embeddings=highest + 1).encode("a star").max() <= highest
    with pytest.raises(TokenizerError) as caught:
        PromptTokenizer(folder, embeddings=highest)
    assert str(caught.value).startswith(
        f"{folder / 'tokenizer.json'} has ids up to {highest} and the text encoder only"
    )


def test_a_tokenizer_that_tells_no_prompts_apart(tmp_path: Path) -> None:
    def one_word(content: dict[str, Any]) -> None:
        words = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
        content.update(model=words, pre_tokenizer=None, normalizer=None, post_processor=None)

    with pytest.raises(TokenizerError, match=r'does not tell prompts apart: "a red star" and "two blue circles" have'):
        PromptTokenizer(with_tokenizer(tmp_path, one_word))


def test_a_template_that_leaves_no_room(tmp_path: Path) -> None:
    folder = with_template(tmp_path, USUAL)
    with pytest.raises(TokenizerError, match=r"makes \d+ tokens of a short prompt, and the checkpoint takes 5 \("):
        PromptTokenizer(folder, positions=5)


@pytest.mark.parametrize("command", ["info", "generate", "serve"])
def test_every_command_says_it_before_weights_are_loaded(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = changed(copied(tmp_path / "model"), "model_index.json")
    (model / TEMPLATE).write_text("{{ raise_exception('never') }}")
    named = [str(model), "--port", "0"] if command == "serve" else ["--model", str(model)]
    assert main([command, *named, "--device", "cpu"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    where = f"the chat template of {model / TEMPLATE}"
    assert line == f"max-zimage: error: {where} cannot hold a single user message: never; fetch it again"


@pytest.mark.parametrize("command", ["info", "generate", "serve"])
def test_every_command_checks_the_ids(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = copied(tmp_path / "model")
    content = json.loads((model / "tokenizer" / "tokenizer.json").read_text())
    content["added_tokens"].append(added(408))
    (model / "tokenizer" / "tokenizer.json").write_text(json.dumps(content))
    named = [str(model), "--port", "0"] if command == "serve" else ["--model", str(model)]
    assert main([command, *named, "--device", "cpu"]) == 2
    assert "ids up to 408 and the text encoder only 408 embeddings" in capsys.readouterr().err
    with pytest.raises(TokenizerError, match="ids up to 408"):
        ZImagePipeline.prepare(model, device="cpu")


AROUND = {
    "none": Around(),
    "system": Around(system="You draw stars."),
    "thinking": Around(thinking="A star has five points."),
    "assistant": Around(assistant="A red star."),
    "all": Around(system="You draw stars.", thinking="It has five points.", assistant="A red star."),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_stands_around_a_prompt(name: str) -> None:
    """The conversation as transformers renders it, and the answer as Qwen3 writes one."""
    around, folder = AROUND[name], EMBEDDED / "tokenizer"
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "system", "content": around.system}] if around.system else []
    messages.append({"role": "user", "content": "a star"})
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    if around.thinking:
        expected += f"<think>\n{around.thinking}\n</think>\n\n"
    if around.assistant:
        expected += around.assistant + "<|im_end|>"
    ours = PromptTokenizer(folder)
    assert ours.render("a star", around) == expected
    assert ours.encode("a star", around).tolist() == theirs(expected, add_special_tokens=False)["input_ids"]
    assert (ours.encode("a star", around).tolist() == ours.encode("a star").tolist()) == (name == "none")
