"""Prompts to token ids: the checkpoint's chat template, then its tokenizer.

Done with `tokenizers` and `jinja2` alone. Loading transformers for it takes seconds (and loads torch where installed),
and its tokenizers pad and cut to a length, which an engine that takes captions as long as they are does not want.

Reference: diffusers `ZImagePipeline._encode_prompt`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from max_zimage.errors import CheckpointError
from max_zimage.strict_json import is_there, parse_object, read_object, read_text, shown
from max_zimage.text.chat_template import ChatTemplate, TokenizerError, said

__all__ = ["Around", "PromptTokenizer", "TokenizerError"]

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KEPT = 16  # prompts whose ids are kept
_PROBES = ("a red star", "two blue circles")
"""Prompts that are tried when a tokenizer is loaded; the empty one, which stands for no negative prompt, is a third."""


@dataclass(frozen=True, kw_only=True)
class Around:
    """The rest of the conversation that a prompt stands in; empty texts are left out.

    Attributes:
        system: A system message before it.
        thinking: What the answer has between <think> and </think>.
        assistant: The answer, which is closed behind it; without one the answer is left open.

    Reference: llm-dit src/llm_dit/conversation/formatter.py.
    """

    system: str = ""
    thinking: str = ""
    assistant: str = ""

    @property
    def answer(self) -> str:
        """What stands behind the generation prompt, as Qwen3 writes it."""
        thought = f"<think>\n{self.thinking}\n</think>\n\n" if self.thinking else ""
        return thought + (f"{self.assistant}<|im_end|>" if self.assistant else "")


PROMPT_ALONE = Around()


class PromptTokenizer:
    """The tokenizer of a checkpoint; encoding is safe from several threads."""

    def __init__(self, directory: Path | str, *, embeddings: int | None = None, positions: int | None = None) -> None:
        """Load `tokenizer.json`, `tokenizer_config.json` and the chat template, and try them.

        Args:
            directory: The checkpoint's `tokenizer` folder.
            embeddings: Ids that the text encoder knows; None if nobody will encode them.
            positions: Tokens that a prompt may have at most, likewise.

        Raises:
            TokenizerError: If a file is missing or cannot be read, prompts do not come through template and tokenizer,
                or there are ids that the text encoder does not know.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise TokenizerError(f"no tokenizer: {folder} is not a folder; a checkpoint has one named tokenizer")
        self._file = folder / "tokenizer.json"
        try:
            self._tokenizer, self._digest = _load_tokenizer(self._file)
            config = read_object(folder / "tokenizer_config.json")
        except TokenizerError:
            raise
        except CheckpointError as error:
            raise TokenizerError(str(error)) from error
        self._template = ChatTemplate(folder, config)
        self._named_tokens = _named_tokens(folder / "tokenizer_config.json", config)
        self._embeddings = embeddings
        self._kept = lru_cache(_KEPT)(self._encode)
        if embeddings is not None:
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
            self._check_known(max(vocabulary.values(), default=0))
        self._try(positions)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; the text encoder needs at least as many embeddings."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def digest(self) -> str:
        """Of its file."""
        return self._digest

    @property
    def template_digest(self) -> str:
        """Of the chat template's text."""
        return self._template.digest

    def render(self, prompt: str, around: Around = PROMPT_ALONE) -> str:
        """Put a prompt into the chat template as a user's message that waits for an answer.

        Args:
            prompt: The text as it was written.
            around: What stands before and behind it.

        Returns:
            The text that is tokenized.

        Raises:
            TokenizerError: If the template refuses the conversation.
        """
        return self._template.render(prompt, self._named_tokens, around.system) + around.answer

    def encode(self, prompt: str, around: Around = PROMPT_ALONE) -> npt.NDArray[np.int64]:
        """Turn a prompt into ids, neither padded nor cut.

        Args:
            prompt: The text as it was written. Special tokens inside it count as such, as in the reference.
            around: What stands before and behind it.

        Returns:
            int64 [tokens], chat template included; at least one. Nobody may write to it: a prompt that is checked first
            and drawn then, or drawn again with another seed, is encoded once.

        Raises:
            TokenizerError: If template or tokenizer cannot take it.
        """
        return self._kept(prompt, around)

    def encode_formatted(self, text: str) -> npt.NDArray[np.int64]:
        """Turn a text that stands in its chat template already into ids, neither padded nor cut.

        Args:
            text: Is tokenized as it is.

        Returns:
            int64 [tokens]; at least one.

        Raises:
            TokenizerError: If the tokenizer cannot take it.
        """
        return self._ids(text)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> npt.NDArray[np.int64]:
        """Turn a conversation into ids that an answer follows, without a block of thoughts.

        Args:
            messages: Each with role and content.

        Returns:
            int64 [tokens].

        Raises:
            TokenizerError: If template or tokenizer cannot take it.
        """
        return self._ids(self._template.conversation(messages, self._named_tokens))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self._tokenizer.decode([*ids], skip_special_tokens=True))

    @property
    def end(self) -> int | None:
        """The token that ends a message; None if the tokenizer names none."""
        token = self._named_tokens.get("eos_token")
        found: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return found

    def _encode(self, prompt: str, around: Around) -> npt.NDArray[np.int64]:
        return self._ids(self.render(prompt, around))

    def _ids(self, text: str) -> npt.NDArray[np.int64]:
        try:
            ids = np.asarray(self._tokenizer.encode(text).ids, np.int64)
        except Exception as error:  # the library raises bare Exception, and Python for text that is none
            raise TokenizerError(f"{self._file} cannot encode the prompt: {said(error)}") from error
        if not len(ids):
            raise TokenizerError(f"{self._file} makes no token of {shown(text)}; there is nothing to draw from")
        if self._embeddings is not None:
            self._check_known(int(ids.max()))
        ids.flags.writeable = False
        return ids

    def _check_known(self, highest: int) -> None:
        if self._embeddings is not None and highest >= self._embeddings:
            raise TokenizerError(
                f"{self._file} has ids up to {highest} and the text encoder only {self._embeddings} embeddings "
                "(vocab_size of text_encoder/config.json): they are from different checkpoints; fetch both again"
            )

    def _try(self, positions: int | None) -> None:
        """Encode two prompts and the empty one: what fails with these fails with all."""
        ids = []
        for probe in (*_PROBES, ""):
            if probe not in self.render(probe):
                raise TokenizerError(
                    f"the chat template of {self._template.file} leaves the prompt out: {shown(probe)} becomes "
                    f"{shown(self.render(probe))}, and all prompts would draw the same; fetch it again"
                )
            ids.append(self.encode(probe).tolist())
        if ids[0] == ids[1]:
            raise TokenizerError(
                f"{self._file} does not tell prompts apart: {shown(_PROBES[0])} and {shown(_PROBES[1])} have the same "
                f"ids {shown(ids[0])}; fetch it again"
            )
        most = max(map(len, ids))
        if positions is not None and most > positions:
            raise TokenizerError(
                f"the chat template of {self._template.file} makes {most} tokens of a short prompt, and the checkpoint "
                f"takes {positions} (max_position_embeddings of text_encoder/config.json, axes_lens of "
                "transformer/config.json); they are from different checkpoints"
            )


class NoTokenizer(PromptTokenizer):
    """In place of one, where pictures are drawn from features alone."""

    def __init__(self) -> None:
        """Read nothing."""

    def encode(self, prompt: str, around: Around = PROMPT_ALONE) -> npt.NDArray[np.int64]:
        """Raise: there is no text encoder either."""
        raise TokenizerError("this pipeline draws from features alone, and has no tokenizer; load it with one")


def _load_tokenizer(path: Path) -> tuple[Tokenizer, str]:
    if not is_there(path):
        raise TokenizerError(f"no tokenizer: {path} is missing; only checkpoints with a tokenizer.json are supported")
    text = read_text(path)
    content = parse_object(path, text)
    if not isinstance(content.get("model"), dict):
        raise TokenizerError(f"{path} holds no model, an object with the vocabulary; fetch it again")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path} cannot be read as a tokenizer: {said(error)}; fetch it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _named_tokens(file: Path, config: dict[str, object]) -> dict[str, str]:
    found = {}
    for name in _NAMED_TOKENS:
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(text, str):
            raise TokenizerError(f"{file}: {name} must be a string or an object with content, got {shown(token)}")
        if isinstance(text, str):
            found[name] = text
    return found
