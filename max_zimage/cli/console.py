"""How the command line shows progress: bars on a terminal, short lines anywhere else, always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from max_zimage.progress import Progress, Silent

_NOTE = "max-zimage: warning: "
_PATIENCE = 5.0  # seconds after which a stage explains why it takes long
_FILE_WIDTH = 120
_LINE_EVERY = 5.0  # seconds between the lines of one stage where there is no terminal
_SIGN_OF_LIFE_EVERY = 30.0  # seconds between lines of a stage in which nothing gets done, e.g. while graphs compile


def display(*, quiet: bool = False, note: str = "", stream: TextIO | None = None) -> Progress:
    """Choose a display.

    Args:
        quiet: Whether nothing is shown.
        note: A sentence for whoever waits longer than a few seconds, shown once.
        stream: Where to; stderr by default.
    """
    if quiet:
        return Silent()
    target = sys.stderr if stream is None else stream
    return BarProgress(target, note) if target.isatty() else LineProgress(target, note)


def table_console() -> Console:
    """A console on stdout for tables; wide enough for all columns where a file or a pipe has no width of its own."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _FILE_WIDTH)


class BarProgress:
    """One bar a stage."""

    def __init__(self, stream: TextIO, note: str = "") -> None:
        self._console, self._note = Console(file=stream), note
        self._bars: Bars | None = None
        self._timer: threading.Timer | None = None

    def begin(self, stage: str, total: int) -> None:
        """Draw an empty bar."""
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[label]}"),
            console=self._console,
        )
        self._task = self._bars.add_task(stage, total=total, label="")
        self._bars.start()
        self._timer = _say_later(self._note, lambda text: self._console.print(text, style="dim", highlight=False))
        self._note = ""

    def advance(self, label: str) -> None:
        """Fill the bar by one part."""
        if self._bars is not None:
            self._bars.update(self._task, advance=1, label=label)

    def note(self, text: str) -> None:
        """Say it above the bar."""
        self._console.print(f"{_NOTE}{text}", highlight=False, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Leave the bar standing as it is."""
        if self._timer is not None:
            self._timer.cancel()
        if self._bars is not None:
            self._bars.update(self._task, label="")
            self._bars.stop()
            self._bars = None


class LineProgress:
    """A line when a stage begins and ends, and one now and then in between."""

    def __init__(self, stream: TextIO, note: str = "") -> None:
        self._stream, self._note = stream, note
        self._stage, self._total, self._done = "", 0, 0
        self._began = self._spoke = 0.0
        self._timer: threading.Timer | None = None
        self._over, self._life = threading.Event(), threading.Thread()

    def begin(self, stage: str, total: int) -> None:
        """Say what begins."""
        self._stage, self._total, self._done = stage, total, 0
        self._began = self._spoke = time.monotonic()
        self._say(f"{stage}: 0/{total}")
        self._timer = _say_later(self._note, self._say)
        self._note = ""
        self._over = threading.Event()
        self._life = threading.Thread(target=self._show_life, daemon=True)
        self._life.start()

    def advance(self, label: str) -> None:
        """Say how far it is, unless that was said just now."""
        self._done += 1
        if self._done < self._total and time.monotonic() - self._spoke >= _LINE_EVERY:
            self._spoke = time.monotonic()
            self._say(f"{self._stage}: {self._done}/{self._total}, {label}")

    def end(self) -> None:
        """Say how long it took, and how far it came."""
        self._over.set()
        self._life.join()
        if self._timer is not None:
            self._timer.cancel()
        self._say(f"{self._stage}: {self._done}/{self._total} in {time.monotonic() - self._began:.1f} s")

    def note(self, text: str) -> None:
        """Say it in a line of its own."""
        self._say(f"{_NOTE}{text}")

    def _show_life(self) -> None:
        while not self._over.wait(_SIGN_OF_LIFE_EVERY):
            self._say(f"{self._stage}: {self._done}/{self._total} after {time.monotonic() - self._began:.0f} s")

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def _say_later(text: str, say: Callable[[str], None]) -> threading.Timer | None:
    """Say a sentence, if there is one, in a few seconds, unless the timer is cancelled before."""
    if not text:
        return None
    timer = threading.Timer(_PATIENCE, say, [text])
    timer.daemon = True
    timer.start()
    return timer
