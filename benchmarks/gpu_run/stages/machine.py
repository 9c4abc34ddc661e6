"""What card it is and what it can do, to which everything else is compared, and whether artifacts run here at all."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part


def parts(bench: Bench) -> list[Part]:
    """The card's two rates, by torch."""
    return [Part(name="rates", seconds=10, measure=lambda: _rates(bench))]


def _rates(bench: Bench) -> Iterator[Row]:
    """Of random numbers: a product of zeros is faster."""
    numbers = 1 << 12 if bench.small else 1 << 31
    source, target = (torch.empty(numbers, dtype=torch.int16, device=bench.torch_device).random_() for _ in range(2))
    copied = bench.timed({"copy": lambda: target.copy_(source)}, per_sample=3)["copy"]
    yield Row(case="copy", variant="torch", sizes=f"{2 * numbers} bytes", timing=copied, gbyte=4e-9 * numbers)
    side = 256 if bench.small else 8192
    left, right = (torch.randn(side, side, device=bench.torch_device).to(bench.torch_dtype) for _ in range(2))
    taken = bench.timed({"product": lambda: left @ right}, per_sample=5)["product"]
    size = f"{side}x{side}x{side}"
    yield Row(case=f"product {size}", variant="torch", dtype=bench.dtype, timing=taken, gflop=2e-9 * side**3)
