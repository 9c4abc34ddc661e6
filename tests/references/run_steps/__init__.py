"""Steps that stand in for those of `benchmarks.gpu_run`, by the same names: quick, failing, endless, crashing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Bench:
    """What they get, without a device.

    Attributes:
        work: Folder of what is kept between steps.
        hears: Whether the device answers.
    """

    work: Path
    hears: bool = True

    def answers(self) -> bool:
        """See `benchmarks.gpu_run.bench.Bench`."""
        return self.hears


def bench(*, work: Path, **others: object) -> Bench:
    """Like `benchmarks.gpu_run.stages.bench`."""
    return Bench(work)
