"""Attention over the tokens of a 1024x1024 picture: time, and the memory that the score matrix would cost.

Every variant runs in a process of its own, after another one in which it was compiled, so that the peak of memory is
attention's and not the compiler's. "One graph" hands matmul, softmax and matmul to the graph compiler together, which
may or may not see attention in them; the memory tells.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import ROOT, Row, Timing
from max_zimage.compile import work

_CALLS = 3
"""Timed calls in each process."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of query, key and value: [1, tokens, heads, head_dim]."""

    tokens: int
    heads: int
    head_dim: int

    @property
    def gflop(self) -> float:
        """Both matrix products, in 10^9."""
        return work.attention(1, self.tokens, self.heads, self.head_dim, size=0).flops / 1e9

    @property
    def score_mib(self) -> float:
        """What the float32 score matrix takes."""
        return 4 * self.tokens**2 * self.heads / 2**20


FULL = Shape(tokens=4128, heads=30, head_dim=128)
QUICK = Shape(tokens=160, heads=2, head_dim=128)

VARIANTS = {
    "torch": "torch, scaled_dot_product_attention",
    "joint": "ours, graphs.model.attention",
    "blocked": "MAX, flash attention",
    "naive": "MAX, matmul, softmax, matmul: three graphs",
    "one_graph": "MAX, matmul, softmax, matmul: one graph",
}


def rows(shape: Shape, repeats: int, roofs: dict[str, float]) -> list[Row]:
    """Measure every variant, in turn."""
    for name in VARIANTS:
        run(name, shape, calls=1)
    processes = range(-(-repeats // _CALLS))
    samples = [{name: run(name, shape, calls=_CALLS) for name in VARIANTS} for _ in processes]
    return [
        Row(
            case="attention",
            variant=VARIANTS[name],
            dtype="float32",
            sizes=f"{shape.tokens} tokens x {shape.heads} heads x {shape.head_dim}",
            timing=Timing.of([seconds for sample in samples for seconds in sample[name]["seconds"]]),
            gflop=shape.gflop,
            roof=roofs.get("float32"),
            peak_mib=max(sample[name]["peak_mib"] for sample in samples),
            relative_l2=samples[0][name]["relative_l2"],
            reference=name == "torch",
            note=f"peak beyond the inputs, the output included; all scores would be {shape.score_mib:.0f} MiB",
        )
        for name in VARIANTS
    ]


def run(variant: str, shape: Shape, *, calls: int) -> dict[str, Any]:
    """Run one variant in a process of its own.

    Returns:
        "seconds" of each call, "peak_mib" beyond the inputs, "relative_l2" of some rows against float64.

    Raises:
        RuntimeError: If the process fails.
    """
    numbers = [str(number) for number in (shape.tokens, shape.heads, shape.head_dim, calls)]
    command = [sys.executable, "-m", "benchmarks.attention_variants", variant, *numbers]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"attention as {variant} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
