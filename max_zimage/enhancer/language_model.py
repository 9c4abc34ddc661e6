"""The checkpoint's own Qwen3 as an enhancer: the language model that its text encoder is, token by token.

Reference: transformers generation/utils.py, GenerationMixin.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from typing_extensions import override

from max_zimage.components.language_model import LanguageModel
from max_zimage.enhancer.base import Enhancer, EnhancerFailed, in_time
from max_zimage.enhancer.chat import ChatAnswer, ChatAsked, ChatModel, ChatRefused, Message, Told
from max_zimage.enhancer.settings import EnhancerSettings
from max_zimage.text.next_token import NextToken
from max_zimage.text.tokenizer import PromptTokenizer


class OwnModel(ABC):
    """The language model of a checkpoint, before it is loaded.

    Attributes:
        tokenizer: Of the checkpoint.
        ends: Tokens that end an answer.
        max_positions: Tokens that a conversation and its answer may have together.
    """

    tokenizer: PromptTokenizer
    ends: frozenset[int]
    max_positions: int

    @abstractmethod
    def check(self) -> None:
        """Look at its files.

        Raises:
            CheckpointError: If they hold no whole language model; the message says what is missing.
        """

    @abstractmethod
    def weights(self) -> Mapping[str, int]:
        """Device -> bytes of its weights, where no text encoder is there that has them already."""

    @abstractmethod
    def load(self) -> LanguageModel:
        """Load its weights."""


class LanguageModelEnhancer(Enhancer, ChatModel):
    """Writes with the checkpoint's language model.

    Args:
        settings: How; they were checked.
        own: The model, checked.

    Attributes:
        settings: As given.
    """

    name = "qwen3"
    sampling: ClassVar[frozenset[str]] = frozenset({"temperature", "top_p", "top_k"})

    def __init__(self, settings: EnhancerSettings, own: OwnModel) -> None:
        self.settings, self._own, self._system = settings, own, settings.system()
        self.seconds = settings.seconds
        self._model: LanguageModel | None = None
        self._turn = threading.Lock()

    @override
    def load(self) -> None:
        with self._turn:
            if self._model is None:
                model = self._own.load()
                model.compile()
                self._model = model

    @override
    def weights(self) -> Mapping[str, int]:
        return self._own.weights()

    @override
    def write(self, prompt: str, seed: int) -> str:
        self.load()  # whose minutes are none of the prompt's seconds
        messages = (Message(role="system", content=self._system), Message(role="user", content=prompt))
        told = in_time(self.seconds)
        asked = ChatAsked(messages=messages, seed=seed, max_tokens=self.settings.max_tokens, on_draft=told)
        try:
            found = self.chat(asked)
        except ChatRefused as error:
            raise EnhancerFailed(f"cannot read the prompt: {error}") from error
        if not found.is_whole:
            raise EnhancerFailed(f"did not come to an end within {self.settings.max_tokens} tokens; raise max_tokens")
        return found.text

    @property
    @override
    def most_tokens(self) -> int:
        return self.settings.max_tokens

    @override
    def check(self, asked: ChatAsked) -> None:
        self._ids(asked)

    @override
    def chat(self, asked: ChatAsked) -> ChatAnswer:
        ids = self._ids(asked)
        self.load()
        said = Said(self._own.tokenizer, asked.on_text)
        with self._turn:
            tokens, is_whole = [], False
            for token in self._tokens(ids, asked):
                is_whole = token in self._own.ends
                if not is_whole:
                    tokens.append(token)
                    asked.on_draft(said.add(tokens))
        return ChatAnswer(text=said.end(tokens), is_whole=is_whole, prompt_tokens=len(ids), tokens=len(tokens))

    def _ids(self, asked: ChatAsked) -> list[int]:
        """The conversation as tokens.

        Raises:
            ChatRefused: If it is no conversation for its template, or it and the answer have too many.
        """
        try:
            ids = self._own.tokenizer.encode_chat([each.as_dict() for each in asked.messages])
        except ValueError as error:
            raise ChatRefused("messages", f"messages: {error}") from error
        most = self._own.max_positions
        if len(ids) + asked.max_tokens > most:
            message = f"messages: they have {len(ids)} tokens and the answer {asked.max_tokens}, of {most} together"
            raise ChatRefused("messages", message)
        return ids.tolist()

    def _tokens(self, ids: Sequence[int], asked: ChatAsked) -> Iterator[int]:
        """What the model says, up to the token that ends it."""
        assert self._model is not None
        settings = {name: getattr(self.settings, name) for name in ("temperature", "top_p", "top_k")}
        how = NextToken(**settings | dict(asked.sampling))
        logits, text = self._model.read(ids)
        for place, number in enumerate(how.numbers(asked.seed, asked.max_tokens), 1):
            token = how.choose(logits, float(number))
            yield token
            if token in self._own.ends or place == asked.max_tokens:
                return
            logits, text = self._model.read([token], text)


class Said:
    """A text that is told as it grows, in whole letters.

    Args:
        tokenizer: Tokens to text.
        told: Gets each new piece.
    """

    def __init__(self, tokenizer: PromptTokenizer, told: Told) -> None:
        self._tokenizer, self._told, self._text = tokenizer, told, ""

    def add(self, tokens: Sequence[int]) -> str:
        """Tell what is new, and return the whole text; half of a letter waits for its rest."""
        text = self._tokenizer.decode(tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") and text.startswith(self._text):
            self._tell(text)
        return text

    def end(self, tokens: Sequence[int]) -> str:
        """Tell the rest, and return the whole text."""
        text = self._tokenizer.decode(tokens)
        if text.startswith(self._text):
            self._tell(text)
        return text

    def _tell(self, text: str) -> None:
        new, self._text = text[len(self._text) :], text
        if new:
            self._told(new)
