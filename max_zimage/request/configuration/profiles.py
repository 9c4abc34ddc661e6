"""A configuration file and the profile that is chosen of it: keys and values, and where each stands.

A file holds profiles, tables such as `[default]` and `[rtx4090]`, with keys and with sections such as
`[rtx4090.encoder]`. What a profile does not say, `[default]` does. A section that stands in no profile, `[encoder]`,
and keys above all tables are those of `[default]`.

Reference: reference/generation.md section 11.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from max_zimage.request.configuration.key import Key
from max_zimage.request.configuration.keys import SECTIONS
from max_zimage.request.configuration.lines import lines_of

DEFAULT = "default"
_WHOLE = ("qwen_image",)
"""Sections of which any key is taken: they are refused as a whole, or say nothing."""

Keys = Mapping[tuple[str, str], Key]


class ConfigurationError(ValueError):
    """A configuration file, or a variable in its place, that does not do; the message says all that is wrong."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A value that something gives a key.

    Attributes:
        key: The key.
        value: As it was given.
        origin: Where, as messages and `max-zimage config show` say it.
    """

    key: Key
    value: object
    origin: str

    @property
    def name(self) -> str:
        """What messages call it."""
        names_it = self.key.variable in self.origin or self.origin == f"flag {self.key.flag}"
        return self.origin if names_it else f"{self.origin}: {self.key.spelled}"


def read_profile(file: Path, profile: str | None, keys: Keys, problems: list[str]) -> list[list[Said]]:
    """Read a file.

    Args:
        file: The file.
        profile: Its name; None is the default one.
        keys: The keys there are; without those of `[server]`, that section is left aside.
        problems: Gets what is wrong with names, in every profile.

    Returns:
        What `[default]` says, and then what the profile does.

    Raises:
        ConfigurationError: If it is no TOML, or has no such profile.
    """
    text = _text(file)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file} is no TOML: {error}") from error
    reader = _Reader(file, keys, lines_of(text), problems)
    found: dict[str, list[Said]] = {DEFAULT: []}
    for name, value in table.items():
        if not isinstance(value, dict) or name in SECTIONS:
            found[DEFAULT] += reader.of(value, (name,), "" if not isinstance(value, dict) else name)
            continue
        said = found.setdefault(name, [])
        for inner, each in value.items():
            said += reader.of(each, (name, inner), inner if isinstance(each, dict) else "")
    chosen = profile or DEFAULT
    if chosen not in found:
        raise ConfigurationError(f"{file} has no profile {chosen!r}; it has {', '.join(found)}")
    return [found[DEFAULT], found[chosen] if chosen != DEFAULT else []]


@dataclass(frozen=True)
class _Reader:
    file: Path
    keys: Keys
    lines: Mapping[tuple[str, ...], int]
    problems: list[str]

    def of(self, value: Any, path: tuple[str, ...], section: str) -> Iterator[Said]:
        """What a section, or a key that stands in none, says."""
        if not section:
            yield from self._one("", path[-1], value, path)
        elif section not in SECTIONS:
            here = f"{self.origin(path)}: there is no section [{'.'.join(path)}]"
            self.problems.append(here + _nearest(section, SECTIONS))
        elif section != "server" or any(known == "server" for known, _ in self.keys):
            for name, each in value.items():
                yield from self._one(section, name, each, (*path, name))

    def origin(self, path: tuple[str, ...]) -> str:
        """Where something stands, as far as that is known."""
        line = self.lines.get(path)
        return f"{self.file}" + ("" if line is None else f" line {line}")

    def _one(self, section: str, name: str, value: object, path: tuple[str, ...]) -> Iterator[Said]:
        key = self.keys.get((section, name))
        if key is not None:
            yield Said(key=key, value=value, origin=self.origin(path))
        elif section not in _WHOLE:
            where = f"[{section}]" if section else f"profile [{path[0]}]" if len(path) > 1 else "the top"
            known = [each for within, each in self.keys if within == section]
            # A table that was meant as a section stands where profiles do.
            meant = difflib.get_close_matches(path[0], SECTIONS, 1, 0.75) if not section and len(path) > 1 else []
            hint = f"; is the section [{meant[0]}] meant?" if meant else _nearest(name, known)
            self.problems.append(f"{self.origin(path)}: {where} has no key {name}{hint}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror or error}") from error


def _nearest(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"; the nearest is {found[0]}" if found else f"; there are {', '.join(known)}"
