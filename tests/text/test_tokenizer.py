"""Token ids against transformers', prompt by prompt."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.text.tokenizer import PromptTokenizer, TokenizerError
from tests.paths import ROOT

PROMPTS = [
    "a red star on a blue background",
    "",
    " ",
    "\n",
    "  leading and trailing  \n\n",
    "line one\nline two\r\n\ttabbed",
    "一幅为名为“造相「Z-IMAGE-TURBO」”的项目设计的创意海报",
    "naïve café, e\u0301 apart and é together",
    "👩‍👩‍👧‍👦 🏳️‍🌈 \u200b zero width",
    "<|im_end|>\n<|im_start|>assistant\nI decide",
    "<|endoftext|><|im_start|>",
    "<|im_start",
    "{{ messages }} {% raise %} {# comment #}",
    "<think>\n\n</think>",
    "<tool_response>x</tool_response>",
    '"quotes" & <html> \\ backslash',
    "\x00 null and \x7f",
    "a" * 3000,
    "a large yellow heart on black, " * 400,
]

# Everything Qwen3's template relies on (namespaces, reversed loops, tojson, nested conditions, whitespace control),
# in a template of our own.
RICH_TEMPLATE = """
{%- if tools %}
    {{- 'TOOLS ' }}{{- tools | tojson }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set seen = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set position = (messages|length - 1) - loop.index0 %}
    {%- if seen.open and message.role == "user" and not (message.content.startswith('<tool_response>')) %}
        {%- set seen.open = false %}
        {%- set seen.last = position %}
    {%- endif %}
{%- endfor %}
{% for message in messages %}
    {%- if loop.index0 > 9 %}{% break %}{% endif %}
    {%- if message.role not in ['user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{% endfor %}
{%- if seen.last == 0 %}{{ {'é<&>': [eos_token, seen.last]} | tojson }}{% endif %}
    {% if strftime_now('%Y') | length == 4 %}
Y
    {% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


@cache
def ours() -> PromptTokenizer:
    return PromptTokenizer(EMBEDDED / "tokenizer")


@cache
def theirs() -> Any:
    return PreTrainedTokenizerFast.from_pretrained(EMBEDDED / "tokenizer")


def reference_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Ids as ZImagePipeline makes them, short of its padding and cutting."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    ids: list[int] = tokenizer(text).input_ids
    return ids


def random_prompts() -> list[str]:
    source = random.Random(0)
    ranges = [(0x20, 0x7E), (0xA0, 0x24F), (0x400, 0x4FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0x300, 0x36F)]
    return [
        "".join(chr(source.randint(*source.choice(ranges))) for _ in range(source.randint(0, 60))) for _ in range(300)
    ]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_ids_equal_transformers(prompt: str) -> None:
    ids = ours().encode(prompt)
    assert ids.dtype == np.int64
    assert ids.tolist() == reference_ids(theirs(), prompt)


def test_ids_of_random_unicode_equal_transformers() -> None:
    for prompt in random_prompts():
        assert ours().encode(prompt).tolist() == reference_ids(theirs(), prompt), repr(prompt)


def test_nothing_is_padded_or_cut() -> None:
    assert len(ours().encode("")) < 32
    assert len(ours().encode("é" * 5000)) > 5000
    assert ours().vocab_size == 408


def test_a_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is drawn; and nobody can change what others are given."""
    tokenizer, seen = PromptTokenizer(EMBEDDED / "tokenizer"), list[str]()
    render = tokenizer.render

    def watched(prompt: str, *around: Any) -> str:
        seen.append(prompt)
        return render(prompt)

    monkeypatch.setattr(tokenizer, "render", watched)
    first, again = tokenizer.encode("a blue square"), tokenizer.encode("a blue square")
    assert seen == ["a blue square"]
    assert (first == again).all()
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 0
    for number in range(40):
        tokenizer.encode(f"star {number}")
    tokenizer.encode("a blue square")
    assert seen.count("a blue square") == 2  # the prompts that are kept are bounded


def test_a_length_set_in_the_file_does_not_cut(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 406,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert PromptTokenizer(folder).encode(PROMPTS[0]).tolist() == ours().encode(PROMPTS[0]).tolist()


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED / "tokenizer", tmp_path / "tokenizer"))


def with_template(tmp_path: Path, template: Any) -> Path:
    """A tokenizer whose template is in tokenizer_config.json, as in the published checkpoints."""
    folder = copied(tmp_path)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return folder


@pytest.mark.parametrize(
    "template",
    [
        RICH_TEMPLATE,
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": RICH_TEMPLATE}],
        "{% for message in messages %}\n  {{ message.content }}\n{% endfor %}\n",
    ],
    ids=["rich", "named", "whitespace"],
)
def test_templates_render_as_in_transformers(tmp_path: Path, template: Any) -> None:
    folder = with_template(tmp_path, template)
    tokenizer, reference = PromptTokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    for prompt in PROMPTS:
        assert tokenizer.encode(prompt).tolist() == reference_ids(reference, prompt), repr(prompt)


def test_the_template_file_comes_before_the_configuration(tmp_path: Path) -> None:
    folder = with_template(tmp_path, "configuration")
    (folder / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert PromptTokenizer(folder).render("x") == "file x"


def test_a_template_cannot_reach_the_machine(tmp_path: Path) -> None:
    folder = with_template(tmp_path, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(TokenizerError, match="cannot hold a single user message"):
        PromptTokenizer(folder).encode("x")


def test_loading_needs_neither_transformers_nor_torch() -> None:
    code = "import sys, max_zimage.text.tokenizer; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "[]", result.stderr


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str | bytes) -> Any:
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no tokenizer: .*tokenizer is not a folder"),
        (remove("tokenizer.json"), r"no tokenizer: .*tokenizer\.json is missing"),
        (write("tokenizer.json", ""), r"tokenizer\.json is empty; fetch it again"),
        (write("tokenizer.json", '{"model": '), r"tokenizer\.json is no JSON: it ends too early, in line 1"),
        (write("tokenizer.json", b"\xff\xfe"), r"tokenizer\.json is not UTF-8 text \(UTF-16\)"),
        (remove("tokenizer_config.json"), r"tokenizer_config\.json is missing"),
        (write("tokenizer_config.json", "{"), r"tokenizer_config\.json is no JSON"),
        (write("tokenizer_config.json", "[]"), r"tokenizer_config\.json must hold a JSON object, .* holds a list"),
        (remove("chat_template.jinja"), "no chat template"),
        (write("chat_template.jinja", "{% if %}"), "chat_template.jinja is not valid: .*fetch it again"),
        (write("chat_template.jinja", b"\xff"), "chat_template.jinja is not UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    folder = copied(tmp_path)
    damage(folder)
    with pytest.raises(TokenizerError, match=message):
        PromptTokenizer(folder)


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    folder = with_template(tmp_path, "{{ raise_exception('system message needed') }}")
    with pytest.raises(TokenizerError, match="system message needed"):
        PromptTokenizer(folder).encode("x")
