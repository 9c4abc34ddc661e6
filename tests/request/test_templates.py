"""Prompt templates: the shipped ones, a folder of one's own, and what is no template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from max_zimage.cli.main import main
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.errors import RequestError
from max_zimage.request.templates import SHIPPED, VARIABLE, TemplateError, Templates, parse
from max_zimage.text.tokenizer import Around, PromptTokenizer
from tests.request.conftest import Repeat
from tests.request.test_request import make

MINE = """---
name: mine
category: tests
thinking_content: 'Think of stars.'
tags: [a, b]
---

You draw stars. --- Many of them.

---
And no circles.
"""


def test_the_shipped_ones_are_whole() -> None:
    found = Templates().all
    assert len(found) >= 40
    assert len(list(SHIPPED.glob("*.md"))) == len(found)
    kinds = {template.category for template in found.values()}
    assert kinds == {"photography", "illustration", "painting", "design", "three-d", "animation"}
    tokenizer = PromptTokenizer(EMBEDDED / "tokenizer")
    for name, template in found.items():
        assert (template.name, bool(template.description)) == (name, True)
        assert 60 < len(template.system) < 400, name
        assert len(tokenizer.encode("a star", Around(system=template.system))) < 200
    assert len({template.system for template in found.values()}) == len(found)


def test_a_file_is_read_as_it_is_meant() -> None:
    found = parse(MINE, Path("x.md"))
    assert (found.name, found.category, found.thinking, found.assistant) == ("mine", "tests", "Think of stars.", "")
    assert found.system == "You draw stars. --- Many of them.\n\n---\nAnd no circles."
    plain = parse("\ufeffOnly a text.\n", Path("some/plain.md"))
    assert (plain.name, plain.system) == ("plain", "Only a text.")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("---\nname: x\n", "does not end with another such line"),
        ("---\nname: [x\n---\n", "is no YAML between its lines ---"),
        ("---\n- x\n---\n", "must hold names and texts between its lines ---, got list"),
        ("---\nname: 3\n---\n", "name must be a text, got 3; put it in quotes"),
    ],
)
def test_what_is_no_template_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_text(text, encoding="utf-8")
    with pytest.raises(TemplateError, match=says) as error:
        _ = Templates(tmp_path).all
    assert "bad.md" in str(error.value)


def test_names_and_not_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "portrait.md").write_text("My own portrait.", encoding="utf-8")
    (tmp_path / "outside.md").write_text("Outside.", encoding="utf-8")
    assert Templates(folder).find("portrait").system == "My own portrait."
    for name in ("../outside", "outside", "deeper/portrait", "portrait.md", ""):
        with pytest.raises(TemplateError, match=r"there is no template .*; there are aerial, architecture"):
            Templates(folder).find(name)
    monkeypatch.setenv(VARIABLE, str(folder))
    assert Templates().find("portrait").system == "My own portrait."
    (folder / "other.md").write_text("---\nname: portrait\n---\nTwice.", encoding="utf-8")
    with pytest.raises(TemplateError, match="have the same name, portrait; rename one"):
        _ = Templates().all
    (folder / "other.md").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match="is not UTF-8 text"):
        _ = Templates().all
    with pytest.raises(TemplateError, match="is not a folder"):
        _ = Templates(tmp_path / "none").all


def test_a_template_stands_for_its_texts() -> None:
    system = Templates().find("portrait").system
    assert make(template="portrait").system_prompt == system
    mixed = make(template="portrait", system_prompt="", thinking_content="Calm.")
    assert (mixed.system_prompt, mixed.thinking_content) == ("", "Calm.")
    for name, says in (
        ("portraits", "template: there is no template 'portraits'; there are"),
        (3, "must be a name, got 3"),
    ):
        with pytest.raises(RequestError, match=says):
            make(template=name)


def test_pictures_remember_the_texts(repeat: Repeat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.md").write_text(MINE, encoding="utf-8")
    flags = ("a red star", "--steps", "1", "--height", "64", "--width", "64", "--seed", "3")
    assert repeat(*flags, "--template", "mine", "--templates-dir", "own", "--output", "a.png") == (0, "")
    (tmp_path / "own" / "mine.md").unlink()
    assert repeat("--from", "a.png", "--output", "b.png") == (0, "")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert main(("info", "--templates", "--json")) == 0
    listed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {template["name"] for template in listed["templates"]} == set(Templates().all)
