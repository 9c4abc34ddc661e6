"""`max-zimage compile`: every graph for a target, as a table of seconds and memory."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

from rich import box
from rich.table import Table

from max_zimage import embedded
from max_zimage.checkpoint.config import ModelSpecs, model_specs
from max_zimage.checkpoint.defaults import usual_guidance
from max_zimage.checkpoint.locate import CONFIG_FILES, read_config, resolve_model
from max_zimage.checkpoint.model_index import GENERATION_DEFAULTS, read_index
from max_zimage.cli.console import display, table_console
from max_zimage.cli.errors import checking
from max_zimage.cli.options import model_path
from max_zimage.compile.ahead_of_time import (
    FULL_MODEL,
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
from max_zimage.compile.entry import EVERY_COMPONENT, ComponentName
from max_zimage.compile.jobs import Report
from max_zimage.compile.launches import lines
from max_zimage.device.dtypes import ModelDtype
from max_zimage.diffusion_gemma.config_file import is_diffusion_gemma, read_file
from max_zimage.pipeline.configured import configured_guidance
from max_zimage.progress import shown_by, stage
from max_zimage.request.configuration.configuration import Configuration
from max_zimage.version import __version__

PUBLISHED = "the published models"


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
    dtype = default_dtype(target) if arguments.dtype == "auto" else cast(ModelDtype, arguments.dtype)
    reports = []
    what = f"{'Listing' if arguments.list_kernels else 'Compiling'} for {target}"
    with checking():
        attention = check_attention(arguments.attention_backend, specs, target, dtype)
    ways = {"keep": arguments.keep, "list_kernels": arguments.list_kernels, "symbols": arguments.symbols}
    with shown_by(display()), stage(what, len(graphs)) as shown:
        for report in compile_target(specs, target, dtype, graphs, **ways, attention=attention, mesh=mesh):
            reports.append(report)
            shown.advance(report.graph)
    if arguments.json:
        print(_json(arguments, target, dtype, reports))
    elif arguments.list_kernels:
        print("\n\n".join(listing(report) for report in reports))
    else:
        _print_table(reports, f"{arguments.model or PUBLISHED} in {dtype} for {target}, MAX {version('modular')}")
    return 1 if any(report.error is not None for report in reports) else 0


def what_to_compile(model: str | None) -> tuple[ModelSpecs, Sequence[ComponentName]]:
    """Shapes of a checkpoint and the components that it has; a DiffusionGemma has but one, and Z-Image the others.

    Raises:
        ValueError: See `specs_of`.
    """
    if model is not None and is_diffusion_gemma(Path(model)):
        return replace(FULL_MODEL, diffusion_gemma=read_file(Path(model)).spec), ("diffusion_gemma",)
    pictures = [each for each in EVERY_COMPONENT if each != "diffusion_gemma"]
    return specs_of(model), EVERY_COMPONENT if model is None else pictures


def specs_of(model: str | None) -> ModelSpecs:
    """Shapes of a checkpoint, from its configuration alone; those of the published models if none is named.

    Raises:
        ValueError: If there is no such model, or its configuration is not one that the graphs compute.
    """
    if model is None:
        return FULL_MODEL
    directory = _folder(model)
    return model_specs(**{name: read_config(directory, name) for name in CONFIG_FILES})


def is_guided(model: str | None, specs: ModelSpecs, configuration: Configuration) -> bool:
    """Whether a model's pictures are guided by default, as a pipeline of the same configuration finds it.

    Args:
        model: None for the published models, of which Z-Image-Turbo stands for all.
        specs: Its shapes and schedule, from `specs_of`.
        configuration: What is configured.

    Raises:
        CheckpointError: If the model's index cannot be read.
    """
    configured = configured_guidance(configuration)
    if configured is not None:
        return configured > 0
    if model is None or is_diffusion_gemma(Path(model)):
        return usual_guidance(specs.schedule) > 0
    return usual_guidance(specs.schedule, read_index(_folder(model)).get(GENERATION_DEFAULTS)) > 0


def listing(report: Report) -> str:
    """A graph's launches as text and the kernels of its machine code, or why there are none."""
    if report.kernels is None or report.error is not None:
        return f"# {report.graph}: {report.error}\n# everything it wrote: {report.log}"
    symbols = [] if report.symbols is None else list(symbol_lines(report.symbols))
    return "\n".join([*lines(report.graph, report.kernels), *symbols])


def _folder(model: str) -> Path:
    named = model_path(model)
    return resolve_model(embedded.PATH if named is None else named)


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
