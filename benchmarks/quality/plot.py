"""The quality table as a picture: similarity against speed, one curve a method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from benchmarks.measure import Row, speedup

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

METHODS = {
    r"first_block:.*warmup_steps=0,block=noise_refiner": ("first_block", "tab:blue", "o-"),
    r"first_block:.*warmup_steps=[1-9]\d*,block=noise_refiner": ("first_block, warm-up", "tab:cyan", "s--"),
    r"first_block:.*block=layers": ("first_block, block=layers", "tab:purple", "D--"),
    r"taylorseer:.*max_order=1": ("taylorseer, order 1", "tab:green", "o-"),
    r"taylorseer:.*max_order=2": ("taylorseer, order 2", "tab:olive", "s--"),
    r"FirstBlockCacheConfig": ("diffusers, FirstBlockCache", "tab:red", "^:"),
    r"TaylorSeerCacheConfig": ("diffusers, TaylorSeerCache", "tab:orange", "^:"),
    r"cache-dit": ("cache-dit, DBCache", "tab:gray", "v:"),
}
"""Variant -> name, colour and marks of its curve; colours that stand out from white."""


Point = tuple[float, float]
"""Times faster than uncached, mean SSIM."""


def curves(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """The points of every method, from the slowest on; rows without a speed relative to an uncached one have none."""
    found = {
        label: sorted(point for row in rows if re.match(pattern, row.variant) for point in _points(row, rows))
        for pattern, (label, _, _) in METHODS.items()
    }
    return {label: points for label, points in found.items() if points}


def defaults(rows: Sequence[Row]) -> list[Point]:
    """The points of the methods' defaults."""
    return [point for row in rows if row.note == "default" for point in _points(row, rows)]


def _points(row: Row, rows: Sequence[Row]) -> list[Point]:
    ratio = speedup(row, rows)
    return [] if ratio is None or row.quality.ssim is None else [(ratio, row.quality.ssim)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG, one panel for every number of steps.

    Args:
        rows: Of the table.
        path: Where to.
    """
    panels = list(dict.fromkeys(",".join(row.case.split(",")[:2]) for row in rows))
    # White behind everything, for the page that shows it may be dark.
    size = (5.2 * len(panels), 4.6)
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, dpi=110, facecolor="white", layout="constrained", squeeze=False
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        _panel(axis, panel, [row for row in rows if row.case.startswith(panel)])
    axes[0][0].set_ylabel("mean SSIM with the uncached picture")
    shown = [axis.get_legend_handles_labels() for axis in axes[0]]
    handles = {label: handle for pair in shown for handle, label in zip(*pair, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path)
    plt.close(figure)


def _panel(axis: Axes, title: str, rows: Sequence[Row]) -> None:
    looks = {label: (color, marks) for label, color, marks in METHODS.values()}
    for label, points in curves(rows).items():
        color, marks = looks[label]
        axis.plot(*zip(*points, strict=True), marks, label=label, color=color, markersize=4, linewidth=1.2)
    for speed, similarity in defaults(rows):
        axis.plot(speed, similarity, "ko", markersize=11, fillstyle="none", label="defaults")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("times faster than uncached")
    axis.grid(alpha=0.3)
