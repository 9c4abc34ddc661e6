"""How progress looks on a terminal and elsewhere."""

from __future__ import annotations

import io
import time

import pytest

from max_zimage.cli import console
from max_zimage.cli.console import BarProgress, LineProgress, display
from max_zimage.progress import Silent, shown_by, stage


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_display_fits_the_stream() -> None:
    assert isinstance(display(quiet=True), Silent)
    assert isinstance(display(stream=io.StringIO()), LineProgress)
    assert isinstance(display(stream=Terminal()), BarProgress)


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "_LINE_EVERY", 0.0)
    with shown_by(display(stream=stream)), stage("Denoising", 3) as shown:
        for number in range(3):
            shown.advance(f"step {number + 1}")
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["Denoising: 0/3", "Denoising: 1/3, step 1", "Denoising: 2/3, step 2"]
    assert lines[3].startswith("Denoising: 3/3 in 0.")
    assert len(lines) == 4


def test_lines_are_few() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), shown_by(display(stream=stream)), stage("Denoising", 100) as shown:
        for number in range(50):
            shown.advance(f"step {number + 1}")
        raise RuntimeError
    assert [line.split(" in ")[0] for line in stream.getvalue().splitlines()] == [
        "Denoising: 0/100",
        "Denoising: 50/100",
    ]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["lines", "bars"])
def test_whoever_waits_is_told_why(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_PATIENCE", 0.05)
    with shown_by(display(stream=stream, note="This takes minutes.")):
        with stage("Compiling", 1) as shown:
            deadline = time.monotonic() + 20  # a busy machine may wake the timer late
            while "minutes" not in stream.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
            shown.advance("graph")
        with stage("Compiling", 1):
            time.sleep(0.2)
    assert stream.getvalue().count("This takes minutes.") == 1
    assert "Compiling" in stream.getvalue()
    assert "1/1" in stream.getvalue()


def test_a_stage_in_which_nothing_gets_done_shows_life(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "_SIGN_OF_LIFE_EVERY", 0.01)
    with shown_by(display(stream=stream)), stage("Compiling", 6) as shown:
        deadline = time.monotonic() + 20
        while "0/6 after 0 s" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        shown.advance("graph")
    lines = stream.getvalue().splitlines()
    assert "Compiling: 0/6 after 0 s" in lines
    assert lines[-1].startswith("Compiling: 1/6 in ")


def test_a_quick_stage_explains_nothing() -> None:
    stream = io.StringIO()
    with shown_by(display(stream=stream, note="This takes minutes.")), stage("Compiling", 1):
        pass
    assert "minutes" not in stream.getvalue()
