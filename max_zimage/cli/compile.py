"""`max-zimage compile`: every graph for a target, as a table of seconds and memory."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, cast

from rich import box
from rich.table import Table

from max_zimage.cli.console import display, table_console
from max_zimage.cli.errors import checking
from max_zimage.cli.model_shapes import PUBLISHED, is_guided, what_to_compile
from max_zimage.compile.ahead_of_time import (
    TARGETS,
    check_attention,
    check_graphs,
    check_keep,
    check_listable,
    check_mesh,
    check_symbols,
    check_target,
    compile_target,
    default_dtype,
)
from max_zimage.compile.cubins import symbol_lines
from max_zimage.compile.jobs import Report
from max_zimage.compile.launches import lines
from max_zimage.compile.registry import GRAPHS
from max_zimage.device.dtypes import ModelDtype
from max_zimage.pipeline.storages import Storage, named_storages, storage_on
from max_zimage.progress import shown_by, stage
from max_zimage.version import __version__


def compile_graphs(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code: 1 if a graph could not be compiled or kept.

    Raises:
        BadInput: If the target, a graph or the model is unknown, or artifacts cannot be kept.
    """
    with checking():
        target = check_target(arguments.target)
        if arguments.keep:
            check_keep(target)
        if arguments.list_kernels:
            check_listable(target)
        if arguments.symbols:
            check_symbols(target, arguments.list_kernels)
        specs, components = what_to_compile(arguments.model)
        guided = arguments.device_count > 1 and is_guided(arguments.model, specs, arguments.configuration)
        mesh = check_mesh(arguments.device_count, arguments.split, target, is_guided=guided)
        graphs = check_graphs(arguments.graphs, components, mesh)
        graphs, storages = _stored(arguments, graphs)
    dtype = default_dtype(target) if arguments.dtype == "auto" else cast(ModelDtype, arguments.dtype)
    reports = []
    what = f"{'Listing' if arguments.list_kernels else 'Compiling'} for {target}"
    with checking():
        attention = check_attention(arguments.attention_backend, specs, target, dtype)
    ways = {"keep": arguments.keep, "list_kernels": arguments.list_kernels, "symbols": arguments.symbols}
    with shown_by(display()), stage(what, len(graphs)) as shown:
        how: dict[str, Any] = {"attention": attention, "mesh": mesh, "storages": storages}
        for report in compile_target(specs, target, dtype, graphs, **ways, **how):
            reports.append(report)
            shown.advance(report.graph)
    if arguments.json:
        print(_json(arguments, target, dtype, reports))
    elif arguments.list_kernels:
        print("\n\n".join(listing(report) for report in reports))
    else:
        _print_table(reports, f"{arguments.model or PUBLISHED} in {dtype} for {target}, MAX {version('modular')}")
    return 1 if any(report.error is not None for report in reports) else 0


def _stored(arguments: argparse.Namespace, graphs: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, Storage]]:
    """Graphs that run on the target, and how their matrices are kept: what is in a storage for a CPU runs there.

    Raises:
        ValueError: If a graph is named that does not run there, or several devices are to share what is quantized.
    """
    named, is_host = named_storages(arguments.quantize), TARGETS[arguments.target] is None
    if named and arguments.device_count > 1:
        raise ValueError("quantize is for one device; leave it or --device-count out")
    found = {name: storage_on(each, is_host) for name, each in named.items()}
    away = [graph for graph in graphs if found.get(GRAPHS[graph].component, "") is None]
    parts = " and ".join(f"{name} in {named[name]}" for name, storage in found.items() if storage is None)
    if away and arguments.graphs:
        raise ValueError(
            f"{parts} is for a CPU, got target {arguments.target} for {', '.join(away)}; use int8, or leave them out"
        )
    if away:
        print(f"left out: {', '.join(away)}; {parts} runs on a CPU", file=sys.stderr)
    kept = {name: storage for name, storage in found.items() if storage is not None}
    return tuple(graph for graph in graphs if graph not in away), kept


def listing(report: Report) -> str:
    """A graph's launches as text and the kernels of its machine code, or why there are none."""
    if report.kernels is None or report.error is not None:
        return f"# {report.graph}: {report.error}\n# everything it wrote: {report.log}"
    symbols = [] if report.symbols is None else list(symbol_lines(report.symbols))
    return "\n".join([*lines(report.graph, report.kernels), *symbols])


def _json(arguments: argparse.Namespace, target: str, dtype: str, reports: list[Report]) -> str:
    return json.dumps(
        {
            "target": target,
            "model": arguments.model or PUBLISHED,
            "dtype": dtype,
            "versions": {"max_zimage": __version__, "max": version("modular")},
            "graphs": [asdict(report) for report in reports],
        },
        default=str,
    )


def _print_table(reports: list[Report], title: str) -> None:
    console = table_console()
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("graph")
    for heading in ("seconds", "CPU seconds", "peak GiB"):
        table.add_column(heading, justify="right")
    for report in reports:
        table.add_row(
            report.graph,
            "failed" if report.seconds is None or report.error is not None else f"{report.seconds:.1f}",
            f"{report.cpu_seconds:.0f}",
            f"{report.peak_bytes / 2**30:.1f}",
        )
    console.print(table)
    for folder in {report.artifact.parent for report in reports if report.artifact is not None}:
        console.print(f"kept in {folder}: what a machine with the GPU needs in its MAX_ZIMAGE_CACHE")
    for report in reports:
        if report.error is not None:
            console.print(f"{report.graph}: {report.error}")
            console.print(f"  everything it wrote: {report.log}")
