"""From the command of a server to the first picture on its page, part by part, as a person with a browser sees it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.measure import Row, Timing
from tests.references import browser as browsers
from tests.references.servers import Server

FULL, QUICK = "a red star on a blue background", "a star"
"""Prompts that are typed."""
STEPS = 8
PARTS = ("the server is ready", "the page can draw", "the prompt is typed", "the picture is there")
WHOLE = "all of it"


def rows(prompt: str, repeats: int) -> list[Row]:
    """Start a server each time, open its page, type a prompt, press Draw, and wait for the picture.

    Raises:
        RuntimeError: If there is no browser.
    """
    if browsers.found() is None:
        raise RuntimeError(f"this opens a page: one of {', '.join(browsers.NAMES)} is needed, as Debian's chromium")
    _first(prompt)  # which compiles what is not there
    runs = [_first(prompt) for _ in range(repeats)]
    seconds = {part: [run[at] for run in runs] for at, part in enumerate(PARTS)}
    seconds[WHOLE] = [sum(run) for run in runs]
    return [
        Row(
            case="from the command to the first picture of the page",
            variant=part,
            dtype="float32",
            sizes=f"128x128, {STEPS} steps, embedded model",
            timing=Timing.of(each),
        )
        for part, each in seconds.items()
    ]


def _first(prompt: str) -> Sequence[float]:
    """Seconds of each of `PARTS`; the browser is there before."""
    with tempfile.TemporaryDirectory() as folder, browsers.launched() as browser:
        times = [time.perf_counter()]
        with Server(Path(folder)) as server, browsers.visit(browser, server.url) as here:
            times.append(time.perf_counter())
            page = here.open()
            times.append(time.perf_counter())
            page.locator("#prompt").press_sequentially(prompt)
            times.append(time.perf_counter())
            here.drawn(steps=STEPS)
            times.append(time.perf_counter())
    return [after - before for before, after in pairwise(times)]
