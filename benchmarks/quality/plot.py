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


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG, one panel for every number of steps.

    Args:
        rows: Of the table; those without a speed relative to an uncached picture are left out.
        path: Where to.
    """
    panels = list(dict.fromkeys(",".join(row.case.split(",")[:2]) for row in rows))
    # White behind everything, for the page that shows it may be dark.
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(5.2 * len(panels), 4.6),
        dpi=110,
        facecolor="white",
        layout="constrained",
        squeeze=False,
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        _panel(axis, panel, [row for row in rows if row.case.startswith(panel)])
    axes[0][0].set_ylabel("SSIM with the uncached picture, mean")
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path)
    plt.close(figure)


def _panel(axis: Axes, title: str, rows: Sequence[Row]) -> None:
    for pattern, (label, color, marks) in METHODS.items():
        points = sorted(
            (ratio, row.quality.ssim)
            for row in rows
            if re.match(pattern, row.variant) and (ratio := speedup(row, rows)) and row.quality.ssim is not None
        )
        if points:
            axis.plot(*zip(*points, strict=True), marks, label=label, color=color, markersize=4, linewidth=1.2)
    for row in rows:
        ratio = speedup(row, rows)
        if row.note == "default" and ratio and row.quality.ssim is not None:
            axis.plot(ratio, row.quality.ssim, "o", markersize=11, fillstyle="none", color="black", label="defaults")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("times faster than uncached")
    axis.grid(alpha=0.3)
