"""From nothing to a picture in a new process: cold and warm, with the peak of its memory.

Cold means that nothing is compiled yet: empty folders for MAX's cache and for the engine's compiled graphs. Warm means
that the same folders are filled. Files of both engines come from the operating system's cache in either case.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.measure import ROOT, Row, Timing

_CALL = 'pipe("a red star on a blue background", height=128, width=128, num_inference_steps=8, guidance_scale=2.0)'
# A process that was just forked counts its parent's memory as its own until it loads another program, and the system's
# record of the largest size keeps that; so each asks for its own, which began with the program.
_TELL_PEAK = """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")), flush=True)
"""
_OURS = f"""
from max_zimage import ZImagePipeline
pipe = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
{_CALL}
print("picture", flush=True)
"""
_DIFFUSERS = f"""
import torch
from diffusers import ZImagePipeline
pipe = ZImagePipeline.from_pretrained("max_zimage/assets/tiny-zimage", dtype=torch.float32)
{_CALL}
print("picture", flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process: seconds from its start to its picture, and the most memory it held."""

    seconds: float
    peak_mib: float


def rows(repeats: int, *, cold: bool) -> list[Row]:
    """Measure the starts; the cold one, which compiles for minutes, once."""
    with tempfile.TemporaryDirectory(prefix="max-cache-") as folder:
        cache = {"MODULAR_CACHE_DIR": f"{folder}/max", "MAX_ZIMAGE_CACHE": f"{folder}/graphs"} if cold else {}
        first = run(_OURS, cache)  # without `cold`, only there to fill the user's cache
        warm, theirs = [], []
        for _ in range(repeats):
            theirs.append(run(_DIFFUSERS, {}))
            warm.append(run(_OURS, cache))
    measured = [_row("diffusers", theirs, reference=True), _row("ours, warm", warm)]
    return [*measured, _row("ours, cold", [first])] if cold else measured


def run(code: str, environment: Mapping[str, str]) -> Run:
    """Run Python code that prints "picture" when it has one.

    Raises:
        RuntimeError: If it ends without.
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    seconds: float | None = None
    peak = 0
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads would fill up and stop the process
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", code + _TELL_PEAK],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        for line in process.stdout or ():
            if line.strip() == "picture":
                seconds = time.perf_counter() - begin
            elif seconds is not None and line.strip().isdigit():
                peak = int(line)
        process.wait()
        errors.seek(0)
        said = errors.read()
    if seconds is None or process.returncode:
        raise RuntimeError(f"the process ended with {process.returncode} and no picture:\n{said[-2000:]}")
    return Run(seconds=seconds, peak_mib=peak / 1024)


def _row(variant: str, runs: list[Run], *, reference: bool = False) -> Row:
    return Row(
        case="process start to picture",
        variant=variant,
        dtype="float32",
        sizes="128x128, 8 steps, guidance 2",
        timing=Timing.of([run.seconds for run in runs]),
        peak_mib=max(run.peak_mib for run in runs),
        reference=reference,
    )
