"""Plots of the model: beside the measurement, and of what GPUs buy."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.fleet_model import calibrate, gpus
from benchmarks.fleet_model.plan import PROMISE, RATES, Policy, simulated

_COLOURS = ("tab:blue", "tab:green", "tab:orange")


def check(record: calibrate.Record, file: Path) -> None:
    """Latency at each load, measured and foretold.

    Args:
        record: Of the measurement.
        file: Written over.
    """
    slowdown = calibrate.fitted(record)
    loads = list(record.loads)
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    shown = (("rate", "pictures a second"), ("p50", "p50, seconds"), ("p99", "p99, seconds"))
    for each, (name, title) in zip(axes, shown, strict=True):
        for at, colour, values in (
            (-0.2, "tab:gray", [getattr(record.measured(load), name) for load in loads]),
            (0.2, "tab:blue", [getattr(record.foretold(load, slowdown), name) for load in loads]),
        ):
            label = "measured" if at < 0 else "model"
            each.bar(np.arange(len(loads)) + at, values, 0.4, color=colour, label=label)
        each.set_xticks(range(len(loads)), [f"{load}{'*' if load == calibrate.FITTED else ''}" for load in loads])
        each.set_title(title, fontsize=9)
        each.set_xlabel("share of capacity (* fitted there)", fontsize=8)
    axes[0].legend(fontsize=8)
    _save(figure, file)


def plan(file: Path) -> None:
    """Latency over how busy GPUs are, at each rate: large fleets can be busier.

    Args:
        file: Written over.
    """
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for colour, a_minute in zip(_COLOURS, RATES, strict=True):
        work = a_minute / 60 * gpus.mean_seconds(0.0)
        counts = sorted({max(1, round(work / busy)) for busy in (0.98, 0.95, 0.9, 0.8, 0.65, 0.5, 0.35)})
        found = [simulated(a_minute, count, Policy()) for count in counts]
        busy = [100 * each.busy for each in found]
        axes.plot(busy, [each.p99 for each in found], "o-", color=colour, label=f"{a_minute:,} a minute, p99")
        axes.plot(busy, [each.p50 for each in found], "o:", color=colour, label=f"{a_minute:,} a minute, p50")
        for one in (found[0], found[-1]):
            axes.annotate(
                f"{one.replicas}", (100 * one.busy, one.p99), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    axes.axhline(PROMISE, color="black", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.set_xlabel("% of the time in which a GPU draws (numbers: GPUs); derived")
    axes.set_ylabel("seconds to the picture")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    matplotlib.use("Agg")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90, metadata={"Software": None})
