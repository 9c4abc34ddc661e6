"""Prompts to token ids: the checkpoint's chat template, then its tokenizer.

Done with `tokenizers` and `jinja2` alone. Loading transformers for it takes seconds (and loads torch where installed),
and its tokenizers pad and cut to a length, which an engine that takes captions as long as they are does not want.

Reference: diffusers `ZImagePipeline._encode_prompt`; transformers `utils/chat_template_utils.py` for the template's
environment.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(ValueError):
    """A checkpoint's tokenizer is missing, damaged, or not of a kind that is supported."""


class PromptTokenizer:
    """The tokenizer of a checkpoint; encoding is safe from several threads."""

    def __init__(self, directory: Path | str) -> None:
        """Load `tokenizer.json`, `tokenizer_config.json` and the chat template.

        Args:
            directory: The checkpoint's `tokenizer` folder.

        Raises:
            TokenizerError: If a file is missing or cannot be read.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise TokenizerError(f"no tokenizer: {folder} is not a folder; a checkpoint has one named tokenizer")
        self._tokenizer = _load_tokenizer(folder / "tokenizer.json")
        config = _load_json(folder / "tokenizer_config.json")
        self._template = _compile_template(*_find_template(folder, config))
        self._named_tokens = {name: _token_text(config[name]) for name in _NAMED_TOKENS if config.get(name) is not None}

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; the text encoder needs at least as many embeddings."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def render(self, prompt: str) -> str:
        """Put a prompt into the chat template as a user's message that waits for an answer.

        Args:
            prompt: The text as it was written.

        Returns:
            The text that is tokenized.

        Raises:
            TokenizerError: If the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=[{"role": "user", "content": prompt}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                enable_thinking=True,
                **self._named_tokens,
            )
        except TemplateError as error:
            raise TokenizerError(f"the tokenizer's chat template cannot hold a single user message: {error}") from error

    def encode(self, prompt: str) -> npt.NDArray[np.int64]:
        """Turn a prompt into ids, neither padded nor cut.

        Args:
            prompt: The text as it was written. Special tokens inside it count as such, as in the reference.

        Returns:
            int64 [tokens], chat template included.
        """
        return np.asarray(self._tokenizer.encode(self.render(prompt)).ids, np.int64)


def _load_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise TokenizerError(f"no tokenizer: {path} is missing; only checkpoints with a tokenizer.json are supported")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path} cannot be read ({error}); fetch it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _load_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TokenizerError(f"{path} is missing; fetch the checkpoint's tokenizer folder again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} must hold a JSON object, got {type(content).__name__}; fetch it again")
    return content


def _find_template(folder: Path, config: dict[str, Any]) -> tuple[Path, str]:
    """The chat template and the file it came from; a file of its own comes before the configuration's."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path} is not UTF-8 text ({error}); fetch it again") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str):
        raise TokenizerError(
            f"no chat template: neither {path} nor a chat_template in tokenizer_config.json; Z-Image needs Qwen3's"
        )
    return folder / "tokenizer_config.json", template


def _compile_template(source: Path, template: str) -> Template:
    """Compile in a sandbox, as a template is code from a checkpoint; with the names templates rely on."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise TokenizerError(f"the chat template of {source} is not valid: {error}; fetch it again") from error


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


def _token_text(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)
