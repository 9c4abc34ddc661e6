"""What there is to know of one key of the configuration file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Way = Literal["field", "start", "server", "idle", "absent"]

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes", list: "a list"}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key.

    Attributes:
        section: "" for those that stand in no section.
        name: In it.
        way: What it acts on: a field of requests, what a model is started with, what a server is started with, nothing
            ("idle": it has no meaning here and is answered with a line), or what is not built ("absent": asking for it
            is refused).
        target: The field or setting; two keys of one target are two spellings.
        help: What it is, in a few words.
        types: Of its value in TOML; empty where the field decides.
        default: What stands where it is left out, in words.
        convert: What the target gets for a value; None for the value itself. May raise ValueError.
        off: "idle" and "absent": values that ask for nothing; None where any is left aside.
        sentence: The same: what is said of others.
        others: Values of another way that are llm-dit's, and have no meaning here: they are answered with `sentence`.
        waits_for: Another key of the section; unless that says true, this one says nothing.
        flag: On the command line, where that is this key's and no field's or server's.
    """

    section: str
    name: str
    way: Way
    target: str = ""
    help: str = ""
    types: tuple[type, ...] = ()
    default: str = ""
    convert: Callable[[object], object] | None = None
    off: tuple[object, ...] | None = ()
    sentence: str = ""
    others: tuple[str, ...] = ()
    waits_for: str = ""
    flag: str = ""

    @property
    def spelled(self) -> str:
        """As messages name it."""
        return f"[{self.section}] {self.name}" if self.section else self.name

    @property
    def variable(self) -> str:
        """The variable of the environment that stands above it."""
        return "_".join(["MAX_ZIMAGE", *([self.section] if self.section else []), self.name]).upper()

    def check_type(self, value: object) -> None:
        """Refuse a value of another type; a whole number is a number, and true is none.

        Raises:
            ValueError: With what it must be.
        """
        fits = type(value) in self.types or (type(value) is int and float in self.types)
        if self.types and not fits:
            raise ValueError(f"must be {' or '.join(_WORDS[each] for each in self.types)}, got {shown(value)}")


def shown(value: object) -> str:
    """A value as TOML writes it, cut short."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
