"""What is said of an enhancer by whoever starts the program: never by a request."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from max_zimage.errors import CheckpointError
from max_zimage.request.templates import TemplateError, parse
from max_zimage.strict_json import read_text

EMBEDDED, ENCODER = "embedded", "encoder"
"""The model that comes with the package; the language model that the checkpoint's text encoder is a part of."""
KEY_VARIABLE = "MAX_ZIMAGE_ENHANCER_KEY"
TEMPLATE = Path(__file__).parent.parent / "assets" / "enhancer" / "enhance.md"
"""What a model is told that follows instructions, before it is given the prompt."""

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_KINDS: Mapping[str, tuple[tuple[type, ...], str, Callable[[Any], bool], str]] = {
    "seconds": ((int, float), "a number of seconds", lambda value: 0 < value <= 3600, "above 0 and at most 3600"),
    "max_tokens": ((int,), "a whole number", lambda value: 1 <= value <= 8192, "from 1 to 8192"),
    "temperature": ((int, float), "a number", lambda value: 0 <= value <= 2, "from 0 to 2"),
    "top_p": ((int, float), "a number", lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "top_k": ((int,), "a whole number", lambda value: 0 <= value <= 1_000_000, "from 0 to 1000000"),
}


class EnhancerError(ValueError):
    """There is no such enhancer, or it cannot be used; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class EnhancerSettings:
    """An enhancer, and how it is asked.

    Attributes:
        model: "embedded"; "encoder"; a folder of DiffusionGemma; an http(s) address of an API as OpenAI's, such as
            http://localhost:8080/v1. None for the one that goes with the checkpoint.
        template: File whose text is told to models that follow instructions; None for the shipped one.
        api_model: What an API calls its model; empty for the first one that it lists.
        key_file: File with the key for it; None for what the variable `KEY_VARIABLE` says, or no key.
        seconds: That a prompt may take.
        max_tokens: Of an answer.
        temperature: 0 is greedy.
        top_p: Share of the probability that tokens are drawn from.
        top_k: Tokens that are drawn from; 0 for all.

    Raises:
        EnhancerError: With all that is out of range.
    """

    model: str | None = None
    template: str | None = None
    api_model: str = ""
    key_file: str | None = None
    seconds: float = 60.0
    max_tokens: int = 512
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20

    def __post_init__(self) -> None:
        problems = [f"enhancer: {name} {text}" for name in _KINDS if (text := _wrong(name, getattr(self, name)))]
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            problems.append(f"enhancer: model must be a name, a folder or an address, got {self.model!r}")
        if problems:
            raise EnhancerError("\n".join(problems))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EnhancerSettings:
        """Read names and values, as a configuration has them.

        Raises:
            EnhancerError: With names that are none, or all that is out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in given if name not in known]:
            raise EnhancerError(f"an enhancer has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**given)

    @property
    def is_address(self) -> bool:
        """Whether an API is asked."""
        return self.model is not None and _ADDRESS.match(self.model) is not None

    def check(self) -> None:
        """Look at all that is named without loading anything.

        Raises:
            EnhancerError: If the model can be none, the address is no address, or a file cannot be read.
        """
        if self.is_address:
            check_address(str(self.model))
            self.key()
        elif self.model not in (None, EMBEDDED, ENCODER):
            _check_model(str(self.model))
        self.system()

    def system(self) -> str:
        """What a model is told before it is given the prompt.

        Raises:
            EnhancerError: If the template cannot be read, or says nothing.
        """
        file = TEMPLATE if self.template is None else Path(self.template).expanduser()
        try:
            text = parse(read_text(file), file).system
        except (TemplateError, CheckpointError) as error:
            raise EnhancerError(f"the enhancer's template: {error}") from error
        if not text:
            raise EnhancerError(f"the enhancer's template {file} says nothing; write what a prompt is to become")
        return text

    def key(self) -> str | None:
        """The key of an API, from a file or the environment: never from a command line, which others can read.

        Raises:
            EnhancerError: If the file cannot be read, or is empty, or holds what no header can.
        """
        where, text = KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
        if self.key_file is not None:
            where = f"the enhancer's key file {self.key_file}"
            try:
                text = Path(self.key_file).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise EnhancerError(f"{where} cannot be read: {error}") from error
        if text is None:
            return None
        key = text.strip()
        if not key or not key.isascii() or not key.isprintable():
            raise EnhancerError(f"{where} must hold a key of plain letters and signs; put it there, or leave it out")
        return key


def check_address(text: str) -> None:
    """Refuse what is no address of an API.

    Raises:
        EnhancerError: With what it must be.
    """
    try:
        found = urlsplit(text)
        _ = found.port
    except ValueError as error:
        raise EnhancerError(f"the enhancer's address {text!r} cannot be read: {error}") from error
    if found.username is not None or found.password is not None:
        raise EnhancerError(f"the enhancer's address holds a name or a key; put the key into a file, or {KEY_VARIABLE}")
    if not found.hostname or found.query or found.fragment:
        raise EnhancerError(f"the enhancer's address must be http(s)://HOST[:PORT]/PATH such as .../v1, got {text!r}")


def _check_model(name: str) -> None:
    if not Path(name).expanduser().is_dir():
        raise EnhancerError(
            f"there is no enhancer {name!r}: it may be {EMBEDDED}, {ENCODER}, a folder of DiffusionGemma or an "
            "http(s) address; if it is the prompt, it stands before --enhance"
        )


def _wrong(name: str, value: object) -> str:
    """What is wrong with a number, in words; nothing for one that does."""
    types, kind, fits, range_ = _KINDS[name]
    if isinstance(value, bool) or not isinstance(value, types):
        return f"must be {kind}, got {value!r}"
    return "" if fits(value) else f"must be {range_}, got {value!r}"
