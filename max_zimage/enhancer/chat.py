"""Text from an enhancer's own model, for whoever asks it as a chat: what is asked, and what comes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Told = Callable[[str], None]
"""Gets text while it is written; what it raises ends the writing."""


class ChatRefused(ValueError):
    """A conversation that the model cannot take.

    Attributes:
        subject: The field that is to blame.
    """

    def __init__(self, subject: str, message: str) -> None:
        super().__init__(message)
        self.subject = subject


@dataclass(frozen=True, kw_only=True)
class Message:
    """One of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str

    def as_dict(self) -> dict[str, str]:
        """As chat templates take it."""
        return {"role": self.role, "content": self.content}


def _nobody(text: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class ChatAsked:
    """What is asked.

    Attributes:
        messages: The conversation; the last one is a user's.
        seed: Draws the words.
        max_tokens: Of the answer.
        sampling: Other fields by name, each one of `ChatModel.sampling`.
        on_text: Told of each piece of the answer.
        on_draft: Told after each step of the whole answer as it is to be read now, which may change.
    """

    messages: tuple[Message, ...]
    seed: int
    max_tokens: int
    sampling: Mapping[str, float] = field(default_factory=dict)
    on_text: Told = _nobody
    on_draft: Told = _nobody


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """What came of it.

    Attributes:
        text: The answer.
        is_whole: Whether it came to its end, and not to the limit of tokens.
        prompt_tokens: Tokens that were read.
        tokens: Tokens that were written.
    """

    text: str
    is_whole: bool
    prompt_tokens: int
    tokens: int


class ChatModel(ABC):
    """An enhancer whose model runs in this process.

    Attributes:
        name: By which requests name it.
        sampling: Fields of sampling that it honours.
        drafts: Whether it has any.
        most_tokens: Of an answer.
    """

    name: str
    sampling: ClassVar[frozenset[str]] = frozenset()
    drafts: ClassVar[bool] = False

    @property
    @abstractmethod
    def most_tokens(self) -> int:
        """Tokens that an answer may have at most."""

    @abstractmethod
    def check(self, asked: ChatAsked) -> None:
        """Look at what is asked, before it waits for its turn.

        Raises:
            ChatRefused: If the model cannot take it.
        """

    @abstractmethod
    def chat(self, asked: ChatAsked) -> ChatAnswer:
        """Write an answer.

        Raises:
            ChatRefused: If the model cannot take it.
        """
