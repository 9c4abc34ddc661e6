"""A checkpoint's chat template: found in its files, compiled in a sandbox, rendered within bounds.

Reference: transformers `utils/chat_template_utils.py` for the environment.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from max_zimage.errors import CheckpointError
from max_zimage.strict_json import is_there, read_text, shown

_MAX_STEPS = 1_000_000
"""Lines and calls that one rendering may run; Qwen3's template takes some hundreds."""

_MAX_PRODUCT = 1_000_000
"""Of a multiplication's or a power's size: `'x' * 10**12` is one step."""


class TokenizerError(CheckpointError):
    """A checkpoint's tokenizer is missing, damaged, or not of a kind that is supported."""


class ChatTemplate:
    """The chat template of a checkpoint.

    Attributes:
        file: Where it was found.
        digest: Of its text.
    """

    def __init__(self, folder: Path, config: Mapping[str, object]) -> None:
        """Find and compile the template.

        Args:
            folder: The checkpoint's `tokenizer` folder.
            config: Its `tokenizer_config.json`. A file `chat_template.jinja` comes before what this holds.

        Raises:
            TokenizerError: If there is no template, or none that can be compiled.
        """
        self.file, text = _find(folder, config)
        self.digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(text.lstrip("\ufeff"))
        except (TemplateError, RecursionError, SyntaxError, ValueError) as error:
            raise TokenizerError(
                f"the chat template of {self.file} is not valid: {said(error)}; fetch it again"
            ) from error

    def render(self, prompt: str, named_tokens: Mapping[str, str], system: str = "") -> str:
        """Put a prompt into the template as a user's message that waits for an answer.

        Args:
            prompt: The text as it was written.
            named_tokens: What the template may call bos_token and the like.
            system: A message before it; empty for none.

        Raises:
            TokenizerError: If the template refuses the conversation, or does not come to an end.
        """
        messages = [{"role": "user", "content": prompt}]
        messages = [{"role": "system", "content": system}, *messages] if system else messages
        whose = "a system message and a user message" if system else "a single user message"
        return self.conversation(messages, named_tokens, whose, enable_thinking=True)

    def conversation(
        self,
        messages: Sequence[Mapping[str, str]],
        named_tokens: Mapping[str, str],
        whose: str = "this conversation",
        *,
        enable_thinking: bool = False,
    ) -> str:
        """Put messages into the template, and wait for an answer.

        Args:
            messages: Each with role and content.
            named_tokens: What the template may call bos_token and the like.
            whose: What errors call the messages.
            enable_thinking: What the template is told; Qwen3's closes an empty block of thoughts without.

        Raises:
            TokenizerError: If the template refuses the conversation, or does not come to an end.
        """
        try:
            with _bounded():
                return self._template.render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    enable_thinking=enable_thinking,
                    **named_tokens,
                )
        except Exception as error:  # a template is code, and can fail in every way in which code can
            raise TokenizerError(
                f"the chat template of {self.file} cannot hold {whose}: {said(error)}; fetch it again"
            ) from error


def said(error: BaseException) -> str:
    """A library's message on one line, cut where long."""
    text = "too deep a recursion" if isinstance(error, RecursionError) else " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def _find(folder: Path, config: Mapping[str, object]) -> tuple[Path, str]:
    file = folder / "chat_template.jinja"
    try:
        if is_there(file):
            return file, read_text(file)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str):
        found = "no chat_template" if config.get("chat_template") is None else f"chat_template = {shown(template)}"
        raise TokenizerError(
            f"no chat template: there is no {file}, and tokenizer_config.json beside it holds {found}; Z-Image needs "
            "Qwen3's, fetch the tokenizer folder again"
        )
    return folder / "tokenizer_config.json", template


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, as a template is code from a checkpoint; it bounds what a single operation can make."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse products of sequences, and powers, that are beyond any use."""
        size = abs(right) if operator == "**" else max(_times(left, right), _times(right, left))
        if size > (64 if operator == "**" else _MAX_PRODUCT):
            raise TemplateError(f"{operator} makes something too large")
        return super().call_binop(context, operator, left, right)


def _times(sequence: object, count: object) -> int:
    is_sequence = isinstance(sequence, str | list | tuple) and isinstance(count, int)
    return len(sequence) * count if is_sequence else 0  # type: ignore[arg-type, operator]


@contextmanager
def _bounded() -> Iterator[None]:
    """Count what Python runs meanwhile in this thread, and stop a template that does not come to an end.

    A tracer sees every line of the template and every call that it makes; nothing else can stop a loop from outside.
    """
    steps, before = 0, sys.gettrace()

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        steps += 1
        if steps > _MAX_STEPS:
            raise TemplateError(f"it does not come to an end within {_MAX_STEPS} steps")
        return count if frame.f_code.co_filename == "<template>" else None

    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML, which would change the tokens.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
