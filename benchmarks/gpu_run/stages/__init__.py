"""One module a step, each with `parts(bench)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu_run.bench import Bench


def bench(*, work: Path, small: bool, known: Callable[[], list[dict[str, str]]]) -> Bench:
    """What the steps get; see `benchmarks.gpu_run.bench.Bench`."""
    from benchmarks.gpu_run.bench import Bench

    return Bench(work=work, small=small, known=known)
