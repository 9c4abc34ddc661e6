"""Prompt templates: Markdown files whose text is a system message, found by name and never by path.

    ---
    name: portrait
    category: photography
    description: A person, close and calm
    thinking_content: ...            these two may be there
    assistant_content: ...
    ---
    What the system message says.

A file without the part between the lines is a system message alone, under the file's name. Other keys are left aside.
Reference for the form: llm-dit src/llm_dit/templates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml

from max_zimage.errors import CheckpointError

VARIABLE = "MAX_ZIMAGE_TEMPLATES_DIR"
"""Names a folder of one's own, whose templates come before the shipped ones."""

SHIPPED = Path(__file__).parent.parent / "assets" / "templates"

_LINE = "---"
_TEXTS = ("name", "category", "description", "thinking_content", "assistant_content")


class TemplateError(CheckpointError):
    """A template cannot be read, or there is none of that name."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """One template.

    Attributes:
        name: What requests call it.
        category: Such as photography; empty for none.
        description: In a few words; empty for none.
        system: The system message.
        thinking: See `max_zimage.text.tokenizer.Around`.
        assistant: The same.
    """

    name: str
    category: str = ""
    description: str = ""
    system: str = ""
    thinking: str = ""
    assistant: str = ""


@dataclass(frozen=True)
class Templates:
    """Those of a folder of one's own, and under them the shipped ones.

    Attributes:
        folder: One's own, or None: then the one that `MAX_ZIMAGE_TEMPLATES_DIR` names, if any.
    """

    folder: Path | None = field(default=None)

    @cached_property
    def all(self) -> Mapping[str, Template]:
        """By name.

        Raises:
            TemplateError: If a file cannot be read, or two files of a folder have one name.
        """
        own = self.folder or (Path(named) if (named := os.environ.get(VARIABLE)) else None)
        return {**_of_folder(SHIPPED), **(_of_folder(own) if own else {})}

    def find(self, name: str) -> Template:
        """The template of a name.

        Raises:
            TemplateError: If there is none; names those there are.
        """
        if name not in self.all:
            raise TemplateError(f"there is no template {name!r}; there are {', '.join(sorted(self.all))}")
        return self.all[name]


def parse(text: str, file: Path) -> Template:
    """Read a template.

    Args:
        text: Of the file.
        file: Where it is, for messages and for the name.

    Raises:
        TemplateError: If the part between the lines is not closed, is no YAML, or holds other things than texts.
    """
    text = text.removeprefix("\ufeff").lstrip()
    begin, *rest = text.split("\n", 1)
    if begin.strip() != _LINE:
        return Template(name=file.stem, system=text.strip())
    front, closed, body = _split("".join(rest))
    if not closed:
        raise TemplateError(f"{file}: the part that begins with {_LINE} does not end with another such line")
    try:
        values = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        raise TemplateError(f"{file} is no YAML between its lines {_LINE}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise TemplateError(f"{file} must hold names and texts between its lines {_LINE}, got {type(values).__name__}")
    wrong = [name for name in _TEXTS if not isinstance(values.get(name, ""), str)]
    if wrong:
        raise TemplateError(f"{file}: {wrong[0]} must be a text, got {values[wrong[0]]!r}; put it in quotes")
    found = {name: values.get(name, "").strip() for name in _TEXTS}
    return Template(
        name=found["name"] or file.stem,
        category=found["category"],
        description=found["description"],
        system=body.strip(),
        thinking=found["thinking_content"],
        assistant=found["assistant_content"],
    )


def _split(text: str) -> tuple[str, bool, str]:
    """What stands before the first line of dashes, whether there is one, and what stands behind it."""
    lines = text.split("\n")
    for at, line in enumerate(lines):
        if line.rstrip() == _LINE:
            return "\n".join(lines[:at]), True, "\n".join(lines[at + 1 :])
    return text, False, ""


def _of_folder(folder: Path) -> dict[str, Template]:
    found: dict[str, tuple[Template, Path]] = {}
    for file in _files(folder):
        try:
            template = parse(file.read_text(encoding="utf-8"), file)
        except UnicodeDecodeError as error:
            raise TemplateError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
        except OSError as error:
            raise TemplateError(f"{file} cannot be read: {error.strerror or error}") from error
        if template.name in found:
            raise TemplateError(f"{file} and {found[template.name][1]} have the same name, {template.name}; rename one")
        found[template.name] = (template, file)
    return {name: template for name, (template, _) in found.items()}


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise TemplateError(f"no templates: {folder} is not a folder")
    yield from sorted(file for file in folder.rglob("*.md") if file.is_file())
