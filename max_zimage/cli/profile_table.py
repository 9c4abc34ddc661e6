"""A profile as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from max_zimage.cli.console import table_console

_MIB = 2**20
_MODES = {
    "synchronized": "synchronized: the device is waited for around every compiled call",
    "unsynchronized": "not synchronized: only the end of a run is waited for; calls on an accelerator are the seconds "
    "that queueing them costs the host, and the wait is in what the host does last",
}


def print_profile(facts: Mapping[str, Any]) -> None:
    """Print what `max_zimage.profiling.report.Profile.facts` holds."""
    console = table_console()
    seconds, product = facts["seconds"], facts["matmul"]
    console.print(_title(facts))
    console.print(_MODES[facts["mode"]])
    console.print(_table(facts))
    if facts["steps"]:
        each = " ".join(f"{1e3 * step['seconds']:.1f}" for step in facts["steps"])
        console.print(f"ms of each step, host included: {each}")
    if facts["alone"]:
        console.print("guidance and scheduler are part of the step's graph; the same alone, at the same size:")
    for alone in facts["alone"]:
        _print_alone(console, alone, facts)
    origin = f"{facts['compiled']} modules compiled" if facts["compiled"] else "nothing compiled, graphs from disk"
    console.print(
        f"the run in the middle of {facts['repeats']}: {seconds['fastest']:.3f} to {seconds['slowest']:.3f} s; the "
        f"first one took {seconds['first']:.3f} s, loading before it {seconds['load']:.1f} s ({origin})"
    )
    console.print(
        f"matmul: {product['tflop_per_s']:.3f} TFLOP/s in one product {product['tokens']}x{product['width']}x"
        f"{product['hidden']} in {facts['dtype']}, measured after the runs"
    )
    console.print(
        "TFLOP/s: products, convolutions and attention; GB/s: weights, and what those read and write, each once"
    )
    left = ", with what the compiler left behind" if facts["compiled"] else ""
    console.print(f"memory, in the first run: {facts['memory']}{left}; risen: above what was held before the call")
    if facts["trace"] is not None:
        console.print(f"trace: {facts['trace']}")


def _title(facts: Mapping[str, Any]) -> str:
    what = f"{facts['component']} of {facts['model']}" if facts["component"] else str(facts["model"])
    if facts.get("layers"):
        what += f", {facts['layers']} layers"
    if not facts["component"]:
        what += f", {facts['steps_asked']} steps, guidance {facts['guidance']:g}, step cache {facts['step_cache']}"
    return (
        f"{what}, {facts['sizes']}, {facts['dtype']} on {facts['device']} ({facts['cores']} cores, load "
        f"{facts['load_before']:.1f} before), MAX {facts['versions']['max']}"
    )


def _table(facts: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("part", no_wrap=True)
    for heading in ("calls", "seconds", "ms a call", "share", "TFLOP/s", "of matmul", "GB/s", "peak MiB", "risen"):
        table.add_column(heading, justify="right", no_wrap=True)
    *parts, total = facts["parts"]
    for part in parts:
        table.add_row(*_cells(part))
    table.add_section()
    table.add_row(*_cells(total))
    return table


def _cells(part: Mapping[str, Any]) -> list[str]:
    average = part["average_seconds"] if part["part"] != "total" else None
    return [
        part["label"],
        str(part["calls"] or ""),
        f"{part['seconds']:.4f}",
        _number(average, 1e3, ".2f"),
        f"{part['share']:.1%}",
        _number(part["tflop_per_s"], 1, ".3f"),
        _number(part["matmul_share"], 1, ".1%"),
        _number(part["gb_per_s"], 1, ".2f"),
        _number(part["peak_bytes"], 1 / _MIB, ".0f"),
        _number(part["risen_bytes"], 1 / _MIB, ".1f"),
    ]


def _number(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else format(value * factor, form)


def _print_alone(console: Console, alone: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    step = next(part for part in facts["parts"] if part["part"] == "denoise")
    share = alone["seconds"] / step["average_seconds"]
    moved = "" if alone["gb_per_s"] is None else f", {alone['gb_per_s']:.2f} GB/s"
    console.print(
        f"  {alone['label']}: {1e3 * alone['seconds']:.3f} ms, {share:.2%} of a step (graph {alone['graph']}{moved})"
    )
