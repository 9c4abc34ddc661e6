"""Where a block's time goes: seconds of every operation, from MAX's own log of operations.

A block is compiled with the log switched on and called in a process of its own; this process reads the log and the
clock. Operations overlap, and a small one may wait for its thread behind a matrix product: each moment of a call counts
for one kind only, the first in `KINDS` of those that are under way.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import cast

from benchmarks.block import FULL, QUICK, Shape, compiled_block, engine_inputs, random_block, random_inputs
from benchmarks.measure import ROOT, Row, Timing
from max_zimage.device.dtypes import DTYPES, ModelDtype

_EVENT = re.compile(r"\[OP\] (LAUNCH|COMPLETE) (.*) \[id=(\d+)\]")
_INNER = re.compile(r"elementwise\(|matmulmo\.|concat$")
"""What a logged operation logs again from the inside."""

KINDS = (
    ("matrix products", re.compile(r"^matmul|\b(gated_)?linear\b")),
    ("attention", re.compile(r"attention")),
    ("RMSNorm, with what is fused into it", re.compile(r"rms_norm")),
    ("SwiGLU's product", re.compile(r"silu")),
    ("RoPE", re.compile(r"concat|Elementwise\(mul, mul|^Horizontal\(View\(static\.reshape, slice\)")),
)
_WHOLE, _REST = "the whole call", "other"


def rows(shape: Shape, repeats: int, roofs: dict[str, float]) -> list[Row]:
    """Measure the block in every dtype."""
    return [row for dtype in DTYPES for row in _rows_of_dtype(shape, dtype, repeats, roofs)]


def _rows_of_dtype(shape: Shape, dtype: ModelDtype, repeats: int, roofs: dict[str, float]) -> list[Row]:
    name = {FULL: "full", QUICK: "quick"}[shape]
    seconds = seconds_by_kind(_log([sys.executable, "-m", "benchmarks.operations", name, dtype, str(repeats + 1)]))
    timings = {kind: Timing.of(calls[1:]) for kind, calls in seconds.items()}  # the first call warms up
    work = {"matrix products": shape.product_gflop, "attention": shape.attention_gflop, _WHOLE: shape.gflop}
    return [
        Row(
            case=f"operations {dtype}",
            variant=kind,
            dtype=dtype,
            sizes=shape.sizes,
            timing=timing,
            gflop=work.get(kind),
            roof=roofs.get(dtype),
            note=f"{timing.median / timings[_WHOLE].median:.1%} of the call",
        )
        for kind, timing in timings.items()
    ]


def seconds_by_kind(log: Iterable[tuple[float, str]]) -> dict[str, list[float]]:
    """Share out the time of every call.

    Args:
        log: Lines with the second at which each was seen: "CALL" before every call, "END" after the last one, and
            between them MAX's.

    Returns:
        Seconds in each call, by kind; they sum up to the whole call.
    """
    names = [*(kind for kind, _ in KINDS), _REST]
    calls: list[dict[str, float]] = []
    running: dict[str, int] = {}
    last = 0.0
    for second, line in log:
        if calls:
            foremost = min(running.values(), default=len(KINDS))
            calls[-1][names[foremost]] += second - last
        last = second
        if line == "CALL":
            calls.append(dict.fromkeys(names, 0.0))
            running = {}
        elif (event := _EVENT.match(line)) and not _INNER.match(event[2]):
            if event[1] == "LAUNCH":
                running[event[3]] = _kind(event[2])
            else:
                del running[event[3]]
    shared = {name: [call[name] for call in calls] for name in names}
    return {**shared, _WHOLE: [sum(call.values()) for call in calls]}


def _kind(operation: str) -> int:
    """Index in `KINDS`, or their number for what is none of them."""
    return next((index for index, (_, pattern) in enumerate(KINDS) if pattern.search(operation)), len(KINDS))


def _log(command: list[str]) -> list[tuple[float, str]]:
    """Run a process and note when each of its lines arrives.

    Raises:
        RuntimeError: If it fails.
    """
    lines: list[tuple[float, str]] = []
    output = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=dict(os.environ), stdout=output, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines += ((time.perf_counter(), line.rstrip("\n")) for line in process.stdout or ())
    if process.returncode:
        text = "\n".join(line for _, line in lines[-20:])
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
    return [item for item in lines if item[1] in ("CALL", "END") or _EVENT.match(item[1])]


def main() -> None:
    """What the logged process does: compile the block and call it."""
    from max.engine import InferenceSession

    name, dtype, calls = sys.argv[1], cast(ModelDtype, sys.argv[2]), int(sys.argv[3])
    shape = {"full": FULL, "quick": QUICK}[name]
    InferenceSession.debug.op_log_level = "TRACE"
    block, inputs = random_block(shape), random_inputs(shape)
    graph, buffers = compiled_block(shape, block, dtype), engine_inputs(shape, block, inputs, dtype)
    for _ in range(calls):
        print("CALL", flush=True)
        graph(*buffers)
    print("END", flush=True)


if __name__ == "__main__":
    main()
