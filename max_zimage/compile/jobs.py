"""The child processes of `max_zimage.compile.ahead_of_time`: what they are asked, and what is said of their work.

jobs of one target -> `max_zimage.compile.worker` -> a line of JSON for each -> reports
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.compile.cubins import Symbol
from max_zimage.compile.launches import Launches
from max_zimage.compile.registry import TWO, Mesh
from max_zimage.compile.sent import Sent
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.linear import Storage
from max_zimage.graphs.model.attention_backends import Backend

WORKER = ("-m", "max_zimage.compile.worker")
"""Python's arguments for a child."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A graph that a child compiles.

    Attributes:
        graph: One of `max_zimage.compile.ahead_of_time.GRAPHS`.
        target: One of `max_zimage.compile.ahead_of_time.TARGETS`.
        dtype: Of weights and computation.
        specs: Shapes of the model.
        keep: Whether the artifact is written where a pipeline looks for it, see `max_zimage.compile.artifacts`.
        list_kernels: Whether only the kernels that the graph launches are found, see `max_zimage.compile.kernel_lists`.
        symbols: Whether it is compiled besides, for the names in its machine code, see `max_zimage.compile.cubins`.
        attention: How it computes attention; None for what dtype and device choose.
        mesh: What it is compiled for if it runs on several devices.
        storages: Component -> how its matrices are kept; those that are not named, in the dtype.
    """

    graph: str
    target: str
    dtype: ModelDtype
    specs: ModelSpecs
    keep: bool = False
    list_kernels: bool = False
    symbols: bool = False
    attention: Backend | None = None
    mesh: Mesh = TWO
    storages: Mapping[str, Storage] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """How one graph went.

    Attributes:
        graph: Its name.
        seconds: Of the compiler; None where that failed.
        trace_seconds: Of building the graph in Python before that; None where that failed, 0 where what the graph
            launches was known from before.
        cpu_seconds: Processor time that the child took for it, imports included in that of its first graph: what
            compares where other work shares the machine.
        peak_bytes: Most memory that the child had until then.
        kernels: What the graph launches, from `max_zimage.compile.kernel_lists`; None where it was compiled instead.
        symbols: The kernels of its machine code; None where they were not asked for.
        sent: What it has devices send each other in a call, see `max_zimage.compile.sent`; none on one device.
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
    sent: tuple[Sent, ...]
    artifact: Path | None
    error: str | None
    log: Path | None


def done(jobs: Sequence[Job]) -> Iterator[Report]:
    """Have jobs done by one child, and by another one from where a child ends before all of them are done.

    Args:
        jobs: Of one target.

    Yields:
        One report for each, failed or not, as soon as the child is through with it.
    """
    left = list(jobs)
    while left:
        yield from _by_one_child(left)


def _by_one_child(left: list[Job]) -> Iterator[Report]:
    """Take the jobs that a child answers for off the list."""
    handle, name = tempfile.mkstemp(
        prefix=f"max-zimage-{left[0].target.replace(':', '-')}-{left[0].graph}-", suffix=".log"
    )
    log, failed = Path(name), False
    try:
        with os.fdopen(handle, "wb") as output, _child(output) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            # Where it has ended, its status and its log say why.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(pickle.dumps(left))
                child.stdin.flush()
            while left:
                answer = child.stdout.readline().decode()
                if not answer:
                    child.wait()
                report = _report(left.pop(0).graph, answer, child.returncode, log)
                failed = failed or report.error is not None
                yield report
                if not answer:
                    return
    finally:
        if not failed:
            log.unlink(missing_ok=True)


@contextlib.contextmanager
def _child(output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker; it ends when its input does, which is with this process at the latest, or when nobody asks further."""
    root = str(Path(__file__).parents[2])  # where max_zimage is found, installed or not
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(
        [sys.executable, *WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=output,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        yield child
    except BaseException:
        child.kill()
        raise
    finally:
        for pipe in filter(None, (child.stdin, child.stdout)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        child.wait()


def _report(graph: str, answer: str, status: int | None, log: Path) -> Report:
    """Read a worker's line; without one, the process was ended from outside or by a crash of the compiler."""
    result = json.loads(answer) if answer else {}
    error = result.get("error") if result else _last_words(status, log)
    return Report(
        graph=graph,
        seconds=result.get("seconds"),
        trace_seconds=result.get("trace_seconds"),
        cpu_seconds=result.get("cpu_seconds", 0.0),
        peak_bytes=result.get("peak_bytes", 0),
        kernels=Launches.of(result["kernels"]) if result.get("kernels") else None,
        symbols=tuple(Symbol(**each) for each in result["symbols"]) if result.get("symbols") is not None else None,
        sent=tuple(Sent.of(each) for each in result.get("sent", ())),
        artifact=Path(result["artifact"]) if result.get("artifact") else None,
        error=error,
        log=None if error is None else log,
    )


def _last_words(status: int | None, log: Path) -> str:
    """What is known of a process that ended without an answer: LLVM aborts it, with its reason as the last line."""
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"the compiler's process ended with status {status}" + (f": {said[-1]}" if said else "")
