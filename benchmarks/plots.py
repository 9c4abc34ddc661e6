"""Plots of the results, small PNG files, from the lines of the benchmark's CSV files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.resolutions import Fit

Line = Mapping[str, str]
COLOURS = ("tab:gray", "tab:blue", "tab:green", "tab:orange")


def draw(part: str, lines: Sequence[Line], file: Path, metadata: Mapping[str, str]) -> None:
    """Draw a part's plot into a PNG file.

    Args:
        part: "resolutions" or "waterfall".
        lines: Of its CSV file.
        file: Written over.
        metadata: Text chunks of the file.
    """
    matplotlib.use("Agg")
    kinds: dict[str, Callable[[Sequence[Line]], Figure]] = {"resolutions": resolutions, "waterfall": waterfall}
    figure = kinds[part](lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90, metadata={"Software": None, **metadata})


def resolutions(lines: Sequence[Line]) -> Figure:
    """Seconds of a block over tokens: what was measured, the fit, and the part of it that is linear."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for colour, variant in zip(COLOURS, dict.fromkeys(line["variant"] for line in lines), strict=False):
        own = [line for line in lines if line["variant"] == variant]
        tokens = [tokens_of(line) for line in own]
        seconds = [float(line["median_s"]) for line in own]
        fit = Fit.of(tokens, seconds)
        grid = np.linspace(0, max(tokens), 100)
        axes.plot(tokens, seconds, "o", color=colour, label=variant)
        axes.plot(grid, [fit.seconds(n) for n in grid], "-", color=colour, label=f"{variant}: a + b·n + c·n²")
        axes.plot(grid, fit.constant + fit.linear * grid, ":", color=colour, label=f"{variant}: a + b·n")
    axes.set_xlabel("tokens n (a caption of 64 included)")
    axes.set_ylabel("seconds of one block")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def waterfall(lines: Sequence[Line]) -> Figure:
    """A bar for each row, side by side the scenes that all of them drew."""
    timed = [line for line in lines if line["median_s"]]
    cases = list(dict.fromkeys(line["case"] for line in timed))
    longest = max(sum(line["case"] == case for line in timed) for case in cases)
    shown = [case for case in cases if sum(line["case"] == case for line in timed) == longest]
    figure = Figure(figsize=(4.6 + 2.6 * len(shown), 0.7 + 0.3 * longest), layout="constrained")
    grid = figure.subplots(1, len(shown), squeeze=False, sharey=True)
    for axes, case in zip(grid[0], shown, strict=True):
        _bars(axes, [line for line in timed if line["case"] == case])
        axes.set_title(case.removeprefix("waterfall "), fontsize=9)
    return figure


def _bars(axes: Axes, lines: Sequence[Line]) -> None:
    names, seconds = [line["variant"] for line in lines], [float(line["median_s"]) for line in lines]
    kinds = [
        0 if name.startswith("diffusers") else 3 if line["note"].startswith("lossy") else 1
        for name, line in zip(names, lines, strict=True)
    ]
    bars = axes.barh(range(len(names)), seconds, color=[COLOURS[kind] for kind in kinds])
    axes.bar_label(bars, [f" {value:.3g} s" for value in seconds], fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, max(seconds) * 1.2)
    axes.set_xlabel("seconds (orange: lossy)", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)


def tokens_of(line: Line) -> int:
    """The number of tokens that the sizes of a block's row end with."""
    return int(line["sizes"].removesuffix(" tokens").rpartition(" ")[2])
