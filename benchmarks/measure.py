"""How everything here is timed, what a measurement is called, and how it becomes a table and a CSV file.

Competitors are interleaved, one call each in turn, so that a machine that grows slower does so for all of them. A row
carries what is needed to judge it: its conditions, the work it did, the rate of the machine, and the error beside it.
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.pictures import UNKNOWN, Quality
from benchmarks.processor import processor_and_instructions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAUSE_SECONDS = 0.05
"""Between competitors: the threads of the one before spin for a while, waiting for more work."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of repeated calls."""

    n: int
    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarize.

        Raises:
            ValueError: If there is nothing to summarize.
        """
        if not seconds:
            raise ValueError("a timing needs at least one call, got none; use --repeats 1 or more")
        p20, p80 = (float(value) for value in np.percentile(seconds, [20, 80]))
        return cls(n=len(seconds), median=statistics.median(seconds), p20=p20, p80=p80)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        case: What was asked for; rows of one case are comparable.
        variant: Who did it, and how.
        dtype: Of the model.
        sizes: Shapes, steps and the like.
        timing: Seconds a call; None where only memory or a failure is reported.
        compile_seconds: Before the first call, apart from `timing`.
        gflop: Work of one call, in 10^9 floating-point operations.
        roof: GFLOP/s that the machine reaches in a matrix product of this dtype.
        peak_mib: Memory, see the part's own words for what it contains.
        psnr_db: Of the pictures against the reference run.
        max_abs: Largest difference to the reference.
        relative_l2: Norm of the difference, relative to the reference's.
        quality: What many pictures are worth, where a part measures it.
        reference: Whether ratios of the case refer to this row.
        note: What else is to be said, such as the first line of a failure.
    """

    case: str
    variant: str
    dtype: str
    sizes: str
    timing: Timing | None = None
    compile_seconds: float | None = None
    gflop: float | None = None
    roof: float | None = None
    peak_mib: float | None = None
    psnr_db: float | None = None
    max_abs: float | None = None
    relative_l2: float | None = None
    quality: Quality = UNKNOWN
    reference: bool = False
    note: str = ""

    @property
    def rate(self) -> float | None:
        """GFLOP/s of the median call."""
        return None if self.gflop is None or self.timing is None else self.gflop / self.timing.median

    @property
    def roof_share(self) -> float | None:
        """Share of the machine's matmul rate."""
        return None if self.rate is None or self.roof is None else self.rate / self.roof


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a number depends on besides the code that was timed; `gpu` and `driver` are empty without a GPU."""

    date: str
    cpu: str
    cores: int
    gpu: str
    driver: str
    python: str
    max: str
    torch: str
    diffusers: str
    commit: str
    load_before: float

    @classmethod
    def now(cls) -> Conditions:
        """Of this machine and this checkout; `load_before` tells whether the machine was quiet."""
        gpu, driver = _gpu_and_driver()
        return cls(
            date=time.strftime("%Y-%m-%d"),
            cpu=processor_and_instructions(),
            cores=os.cpu_count() or 1,
            gpu=gpu,
            driver=driver,
            python=platform.python_version(),
            max=_version("max"),
            torch=_version("torch"),
            diffusers=_version("diffusers"),
            commit=_commit(),
            load_before=round(os.getloadavg()[0], 2),
        )


RESULT_COLUMNS = [
    "case",
    "variant",
    "dtype",
    "sizes",
    "n",
    "median_s",
    "p20_s",
    "p80_s",
    "speedup",
    "compile_s",
    "gflop",
    "gflop_per_s",
    "roof_gflop_per_s",
    "roof_share",
    "peak_mib",
    "psnr_db",
    "max_abs",
    "relative_l2",
    *(field.name for field in fields(Quality)),
    "note",
]
COLUMNS = (*RESULT_COLUMNS, *(field.name for field in fields(Conditions)))
"""Of every CSV file."""


def seconds_of(call: Callable[[], object], together: int = 1) -> float:
    """Time one call, or the mean of some that follow each other."""
    begin = time.perf_counter()
    for _ in range(together):
        call()
    return (time.perf_counter() - begin) / together


def interleave(
    calls: Mapping[str, Callable[[], object]], repeats: int, warmups: int = 1, together: int = 1
) -> dict[str, Timing]:
    """Time competitors in turn.

    Args:
        calls: By name.
        repeats: Timed calls of each.
        warmups: Calls of each before the first timed one.
        together: Calls that a turn has one after the other, of which the mean counts: where they come so in use, too.

    Returns:
        A timing for each name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmups + repeats):
        for name, call in calls.items():
            time.sleep(PAUSE_SECONDS)
            taken = seconds_of(call, together)
            if turn >= warmups:
                seconds[name].append(taken)
    return {name: Timing.of(taken) for name, taken in seconds.items()}


def relative_l2(actual: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """Norm of the difference relative to the norm of what is expected, in float64."""
    wanted = expected.astype(np.float64)
    return float(np.linalg.norm(actual.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def max_abs(actual: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> float:
    """Largest difference, in float64."""
    return float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max())


def psnr(actual: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB; infinite for equal ones."""
    error = float(np.mean((actual.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def speedup(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times faster than the case's reference row, whose own is 1."""
    reference = next((other for other in rows if other.case == row.case and other.reference), None)
    if reference is None or reference.timing is None or row.timing is None:
        return None
    return reference.timing.median / row.timing.median


def record(row: Row, rows: Sequence[Row], conditions: Conditions) -> dict[str, str]:
    """One line of a CSV file, by column."""
    timing = row.timing
    values = (
        (row.case, row.variant, row.dtype, row.sizes)
        + ((timing.n, timing.median, timing.p20, timing.p80) if timing else (None,) * 4)
        + (speedup(row, rows), row.compile_seconds, row.gflop, row.rate, row.roof, row.roof_share)
        + (row.peak_mib, row.psnr_db, row.max_abs, row.relative_l2)
        + (*vars(row.quality).values(), row.note)
        + tuple(vars(conditions).values())
    )
    return dict(zip(COLUMNS, map(_text, values), strict=True))


def write_csv(path: Path, rows: Sequence[Row], conditions: Conditions) -> None:
    """Write the rows of one part, all columns, over what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(record(row, rows, conditions) for row in rows)


def table(rows: Sequence[Row], conditions: Conditions) -> str:
    """Markdown, without the columns that are empty in every row and without the conditions."""
    records = [record(row, rows, conditions) for row in rows]
    columns = [name for name in RESULT_COLUMNS if any(line[name] for line in records)]
    lines = [columns, ["---"] * len(columns), *([line[name] for name in columns] for line in records)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def ask(*command: str) -> str:
    """What a program prints, without the line's end; empty where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def first_line(error: BaseException) -> str:
    """What a failure says, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _gpu_and_driver() -> tuple[str, str]:
    """Names of the GPUs, and the driver's version."""
    said = ask("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    found = [line.rpartition(", ") for line in said.splitlines() if ", " in line]
    return " + ".join(name for name, _, _ in found), found[0][2] if found else ""


def _commit() -> str:
    """Short hash of the checkout, "+" if tracked files differ from it; empty outside a checkout."""
    if not (ROOT / ".git").exists():
        return ""
    git = ("git", "-C", str(ROOT))
    changed = ask(*git, "status", "--porcelain", "--untracked-files=no")
    return ask(*git, "rev-parse", "--short", "HEAD") + ("+" if changed else "")
