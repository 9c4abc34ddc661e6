"""What the child processes of `max_zimage.compile.ahead_of_time` are asked, and what is said of their work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.compile.cubins import Symbol
from max_zimage.compile.launches import Launches
from max_zimage.device.dtypes import ModelDtype


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one child compiles.

    Attributes:
        graph: One of `max_zimage.compile.ahead_of_time.GRAPHS`.
        target: One of `max_zimage.compile.ahead_of_time.TARGETS`.
        dtype: Of weights and computation.
        specs: Shapes of the model.
        keep: Whether the artifact is written where a pipeline looks for it, see `max_zimage.compile.artifacts`.
        list_kernels: Whether only the kernels that the graph launches are found, see `max_zimage.compile.kernel_lists`.
        symbols: Whether it is compiled besides, for the names in its machine code, see `max_zimage.compile.cubins`.
    """

    graph: str
    target: str
    dtype: ModelDtype
    specs: ModelSpecs
    keep: bool = False
    list_kernels: bool = False
    symbols: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """How one graph went.

    Attributes:
        graph: Its name.
        seconds: Of the compiler; None where that failed.
        trace_seconds: Of building the graph in Python before that; None where that failed.
        cpu_seconds: Processor time of the child, imports included: what compares where other work shares the machine.
        peak_bytes: Most memory that the child had.
        kernels: What the graph launches, from `max_zimage.compile.kernel_lists`; None where it was compiled instead.
        symbols: The kernels of its machine code; None where they were not asked for.
        artifact: What was kept; None where nothing was to be.
        error: The first line of what went wrong; None where nothing did.
        log: Everything the child wrote; None where nothing went wrong.
    """

    graph: str
    seconds: float | None
    trace_seconds: float | None
    cpu_seconds: float
    peak_bytes: int
    kernels: Launches | None
    symbols: tuple[Symbol, ...] | None
    artifact: Path | None
    error: str | None
    log: Path | None
