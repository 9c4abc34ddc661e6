"""What loading weights takes: seconds, and the peak of memory beside the bound that it keeps to.

The bound is the weights that stay bound, in the dtype and order that the graphs take, and the largest tensor twice. The
checkpoint has the published shapes and holds zeros, so that its files are on no disk: seconds are those of the work and
not of reading. Each load is a process of its own: `python -m benchmarks.loading DIR DTYPE WAY`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from benchmarks.checkpoints.shapes import size_of
from benchmarks.make_checkpoint import write_checkpoint
from benchmarks.measure import ROOT, Row, Timing
from max_zimage.device.dtypes import BYTES, ModelDtype
from max_zimage.device.memory import available_memory

_MIB = 2**20
_FEW = 6
_WAYS: Mapping[str, str] = {"gpu": "as a GPU takes them", "cpu": "packed for this CPU"}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What one process found.

    Attributes:
        seconds: To load all components.
        peak: Bytes of memory at most, above those held before.
        bound: Bytes of the weights that stay.
        largest: Bytes of the largest of them.
        read: Bytes of the tensors in the files.
    """

    seconds: float
    peak: int
    bound: int
    largest: int
    read: int

    @property
    def allowed(self) -> int:
        """The most that the peak may be."""
        return self.bound + 2 * self.largest


def rows(size: str, layers: int | None, repeats: int) -> list[Row]:
    """Measure every way in which weights are loaded.

    Args:
        size: Of `benchmarks.checkpoints.shapes.SIZES`.
        layers: Of the transformer and of the text encoder; None for all of them, and then for a few, which have room in
            memory where all do not.
        repeats: Loads of each way.
    """
    counts = (None, _FEW) if layers is None and size == "full" else (layers,)
    return [row for count in counts for row in _of_layers(size, count, repeats)]


def _of_layers(size: str, layers: int | None, repeats: int) -> list[Row]:
    made = size_of(size, layers=layers, text_layers=layers)
    with tempfile.TemporaryDirectory(prefix="max-zimage-loading-") as folder:
        said = write_checkpoint(Path(folder) / "model", made, dtype="bfloat16", seed=None)
        case = f"{said.partition(' of ')[0]} in bfloat16, {layers or 'all'} layers"
        return [_row(Path(folder) / "model", case, way, repeats) for way in _ways()]


def _ways() -> list[tuple[ModelDtype, str]]:
    from max.driver import CPU
    from max.dtype import DType

    from max_zimage.graphs.kernel_library import uses_cpu_kernels

    packed: list[ModelDtype] = [name for name in ("bfloat16", "float32") if uses_cpu_kernels(DType[name], CPU())]
    return [("bfloat16", "gpu"), *((name, "cpu") for name in packed)]


def _row(model: Path, case: str, way: tuple[ModelDtype, str], repeats: int) -> Row:
    dtype, name = way
    variant = f"{dtype}, {_WAYS[name]}"
    needed = sum(file.stat().st_size for file in model.rglob("*.safetensors")) // BYTES["bfloat16"] * BYTES[dtype]
    if name == "cpu" and needed > available_memory():
        note = f"not measured: needs {needed / 1e9:.1f} GB of memory, {available_memory() / 1e9:.1f} are free"
        return Row(case=case, variant=variant, dtype=dtype, sizes="published widths", note=note)
    runs = [_in_a_process(model, dtype, name) for _ in range(repeats)]
    worst = max(runs, key=lambda run: run.peak)
    return Row(
        case=case,
        variant=variant,
        dtype=dtype,
        sizes="published widths",
        timing=Timing.of([run.seconds for run in runs]),
        peak_mib=worst.peak / _MIB,
        note=f"at most {worst.allowed / _MIB:.0f} MiB: {worst.bound / _MIB:.0f} stay, {worst.largest / _MIB:.0f} twice"
        + ("" if worst.peak <= worst.allowed else "; EXCEEDED"),
    )


def _in_a_process(model: Path, dtype: ModelDtype, way: str) -> Loaded:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loading", str(model), dtype, way],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"loading ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return Loaded(**json.loads(done.stdout.splitlines()[-1]))


def measured_here(model: Path, dtype: ModelDtype, way: str) -> Loaded:
    """Load all components in this process."""
    from max_zimage import ZImagePipeline
    from max_zimage.checkpoint.load import load
    from max_zimage.profiling.peak_memory import HostMemory

    plans = ZImagePipeline.prepare(model, device="cpu", dtype=dtype).sources.plans
    meter = HostMemory()
    held = meter.begin()
    began = time.perf_counter()
    kept = [load(plan, dtype, to_pack=way == "cpu", keep_filters=way == "gpu") for plan in plans.values()]
    seconds = time.perf_counter() - began
    most = meter.end()
    if held is None or most is None:
        raise RuntimeError(f"memory is {meter.meaning}")
    recipes = [recipe for plan in plans.values() for recipe in plan.recipes]
    return Loaded(
        seconds=seconds,
        peak=most - held,
        bound=sum(buffer.num_elements * buffer.dtype.size_in_bytes for each in kept for buffer in each.values()),
        largest=max(prod(recipe.shape) for recipe in recipes) * BYTES[dtype],
        read=sum(part.size for recipe in recipes for part in recipe.parts) * BYTES["bfloat16"],
    )


def main(arguments: Sequence[str]) -> int:
    """Load once and print what was found."""
    model, dtype, way = arguments
    print(json.dumps(asdict(measured_here(Path(model), "float32" if dtype == "float32" else "bfloat16", way))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
