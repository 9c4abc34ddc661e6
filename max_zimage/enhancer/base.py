"""What an enhancer is: one call, which answers a text in any case, and says so where it is the prompt as it was."""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_log = logging.getLogger("max_zimage.enhancer")
_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_QUOTES = {'"': '"', "'": "'", "\N{LEFT DOUBLE QUOTATION MARK}": "\N{RIGHT DOUBLE QUOTATION MARK}"}
MAX_CHARACTERS = 10_000
"""Of a text that is taken for a prompt; the usual limit of tokens allows about a fifth of it."""


_is_waited_for: ContextVar[Callable[[], bool]] = ContextVar("is_waited_for", default=lambda: True)


class EnhancerFailed(RuntimeError):
    """No prompt came of it; the message says why, in a part of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Enhanced:
    """What became of a prompt.

    Attributes:
        text: What is to be drawn.
        by: Who was asked, as pictures name it.
        note: Why the text is the prompt as it was given, in a sentence; empty where it was written out.
    """

    text: str
    by: str
    note: str = ""


class Enhancer(ABC):
    """Writes prompts out.

    Attributes:
        name: By which pictures name it.
        workers: How many prompts it may write at a time.
        seconds: That a prompt may take.
    """

    name: str
    workers: int = 1
    seconds: float = 60.0

    def load(self) -> None:  # noqa: B027  (who has nothing to load need not say so)
        """Load and compile what it runs, which may take minutes; else the first prompt does."""

    def weights(self) -> Mapping[str, int]:
        """Device, such as "cpu" or "gpu:0" -> bytes of the weights that `load` puts there.

        Raises:
            ValueError: If its files hold no whole model.
        """
        return {}

    @abstractmethod
    def write(self, prompt: str, seed: int) -> str:
        """Answer a prompt with the one to draw, as it comes.

        Args:
            prompt: As it was given; maybe empty.
            seed: 0 to 2**63 - 1.

        Raises:
            EnhancerFailed: If there is no answer.
        """

    def enhance(self, prompt: str, *, seed: int) -> Enhanced:
        """Write a prompt out.

        Args:
            prompt: As it was given; maybe empty.
            seed: 0 to 2**63 - 1: the same words for the same prompt, where the enhancer is one of this process.
        """
        try:
            return Enhanced(text=cleaned(self.write(prompt, seed)), by=self.name)
        except EnhancerFailed as error:
            return unchanged(prompt, self.name, str(error))
        except Exception:
            # Whatever it was, the prompt can be drawn.
            _log.exception("the enhancer %s failed", self.name)
            return unchanged(prompt, self.name, "failed; the log says why")


@contextmanager
def waited_for(check: Callable[[], bool]) -> Iterator[None]:
    """Have what is written inside end at its next step when nobody waits for it any longer.

    Args:
        check: Whether somebody does; called by whichever thread writes.
    """
    token = _is_waited_for.set(check)
    try:
        yield
    finally:
        _is_waited_for.reset(token)


def in_time(seconds: float) -> Callable[[object], None]:
    """What a writer calls at each of its steps, with anything.

    Args:
        seconds: From now, after which a call raises EnhancerFailed; so does one when nobody waits any longer.
    """
    until, is_waited_for = time.monotonic() + seconds, _is_waited_for.get()

    def check(draft: object) -> None:
        if not is_waited_for():
            raise EnhancerFailed("was ended, for nobody waits any longer")
        if time.monotonic() > until:
            raise EnhancerFailed(f"did not answer within {seconds:g} s")

    return check


def unchanged(prompt: str, by: str, reason: str) -> Enhanced:
    """The prompt as it was given.

    Args:
        prompt: The prompt.
        by: Who was asked.
        reason: Why, in a part of a sentence; it may quote what an API has sent.
    """
    said = " ".join(f"{by} {reason}".split())
    # On a terminal an escape would be obeyed.
    shown = "".join(each if each.isprintable() else "?" for each in said)
    return Enhanced(text=prompt, by=by, note=f"the prompt is drawn as it was given: {shown}")


def cleaned(answer: str) -> str:
    """An answer without what models put around a prompt: thoughts, blank space, one pair of quotes.

    Raises:
        EnhancerFailed: If nothing is left, or what no prompt may hold.
    """
    text = _THOUGHTS.sub("", answer, count=1).strip() if answer.lstrip().startswith("<think>") else answer.strip()
    if text.startswith("<think>"):
        raise EnhancerFailed("answered with thoughts that have no end")
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & {*text[1:-1]}:
        text = text[1:-1].strip()
    text = text.replace("\r\n", "\n")
    if not text:
        raise EnhancerFailed("answered with nothing")
    if len(text) > MAX_CHARACTERS:
        raise EnhancerFailed(f"answered with {len(text)} characters, and a prompt may have {MAX_CHARACTERS}")
    if found := _CONTROLS.search(text):
        raise EnhancerFailed(f"answered with a character that no prompt may hold, U+{ord(found[0]):04X}")
    return text
