"""Prompts to tokens and tokens to texts, with a checkpoint's `tokenizer.json` and its chat template.

Reference: transformers `PreTrainedTokenizerBase.apply_chat_template`, which adds no special tokens to a template's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from max_zimage.diffusion_gemma.steps import Ids
from max_zimage.errors import CheckpointError, RequestError
from max_zimage.strict_json import is_there, read_object, read_text, shown
from max_zimage.text.chat_template import ChatTemplate, TokenizerError, said

FILE, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


class TextTokenizer:
    """The tokenizer of a text checkpoint; safe from several threads.

    Args:
        directory: The checkpoint, with `tokenizer.json`, and where it has a chat template `tokenizer_config.json` or
            `chat_template.jinja`. A model without a template is given prompts as they are.
        vocab_size: Tokens that the model knows.

    Raises:
        TokenizerError: If a file is missing or damaged, or there are tokens that the model does not know.
    """

    def __init__(self, directory: Path, vocab_size: int) -> None:
        self._file = directory / FILE
        self._tokenizer = _load(self._file)
        config = read_object(directory / CONFIG) if is_there(directory / CONFIG) else {}
        has_template = is_there(directory / TEMPLATE) or config.get("chat_template") is not None
        self._template = ChatTemplate(directory, config) if has_template else None
        self._named = _named_tokens(config)
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if highest >= vocab_size:
            raise TokenizerError(
                f"{self._file} has tokens up to {highest}, and the model knows {vocab_size}; they are from different "
                "checkpoints, fetch both again"
            )

    def encode(self, prompt: str) -> Ids:
        """A prompt's tokens, int64 [tokens], the chat template's included.

        Raises:
            RequestError: If the prompt is no text, or makes no token.
            TokenizerError: If template or tokenizer cannot take it.
        """
        if not isinstance(prompt, str):
            raise RequestError.of("prompt", "{field} must be a string, got {given}", given=shown(prompt))
        text = prompt if self._template is None else self._template.render(prompt, self._named)
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=self._template is None).ids
        except Exception as error:  # the library raises bare Exception, and Python for text that is none
            raise TokenizerError(f"{self._file} cannot encode the prompt: {said(error)}") from error
        if not ids:
            raise RequestError.of("prompt", "{field} makes no token, got {given}; write a word", given=shown(prompt))
        return np.asarray(ids, np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _load(file: Path) -> Tokenizer:
    if not is_there(file):
        raise TokenizerError(f"no tokenizer: {file} is missing; fetch the checkpoint again")
    try:
        tokenizer = Tokenizer.from_str(read_text(file))
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{file} cannot be read as a tokenizer: {said(error)}; fetch it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _named_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """Name -> text of the special tokens that a template may ask for."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found
