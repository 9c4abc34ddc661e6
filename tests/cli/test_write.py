"""`max-zimage write`: text on stdout, drafts on a terminal, and errors in the words of flags."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from max_zimage.cli.main import main
from max_zimage.cli.write import shown
from max_zimage.diffusion_gemma import text_diffusion
from max_zimage.diffusion_gemma.prepared import prepare_text
from max_zimage.diffusion_gemma.text_diffusion import TextDraft
from tests.references.text_diffusions import in_pytorch


@pytest.fixture(autouse=True)
def _no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_diffusion.TextDiffusion, "from_prepared", in_pytorch)


@pytest.fixture(scope="module")
def wanted() -> Any:
    return in_pytorch(prepare_text()).generate("red star", seed=3)


def test_the_text_alone_is_on_stdout(wanted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["write", "red star", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{wanted.text}\n"
    assert captured.err == ""


def test_json(wanted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["write", "red star", "--seed", "3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["text"] == wanted.text
    assert facts["token_ids"] == list(wanted.token_ids)
    assert (facts["seed"], facts["steps"], facts["ended"], facts["model"]) == (
        3,
        wanted.steps,
        True,
        "tiny-diffusion-gemma",
    )
    assert set(facts["seconds"]) == {"load", "write"}


def test_a_text_that_was_cut_is_said(wanted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["write", "red star", "--seed", "3", "--max-new-tokens", "3"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert wanted.text.startswith(captured.out.strip())
    assert "warning: the text was cut at 3 tokens; --max-new-tokens allows more" in captured.err
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_numbers_reach_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["write", "red star", "--seed", "3", "--steps", "2", "--stability-threshold", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be from 1 to 100000, got 0"),
        (["--t-max", "0.1"], "--t-max must be above --t-min, got 0.1 and"),
        (["--seed", "-4"], "--seed must be from 0 to"),
        (["--model", "nowhere"], "no text model at nowhere: a directory with config.json"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["write", "red star", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_shown_drafts(
    wanted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every step in turn, and in the end nothing of them: the text stands on stdout."""
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["write", "red star", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{wanted.text}\n"
    seen = terminal.getvalue()
    places = [seen.find(f"canvas 1, step {step} of at most 48") for step in range(1, wanted.steps + 1)]
    assert -1 not in places
    assert places == sorted(places)


def test_a_settled_draft_is_plain() -> None:
    def draft(settled: bool) -> TextDraft:
        return TextDraft(row=0, text="a star", canvas=2, step=3, num_steps=9, settled=settled)

    assert shown(draft(True)).plain == shown(draft(False)).plain == "a star\ncanvas 2, step 3 of at most 9"
    assert [span.style for span in shown(draft(True)).spans] == ["cyan"]
    assert [span.style for span in shown(draft(False)).spans] == ["dim", "cyan"]
