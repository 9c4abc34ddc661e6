"""In which way a CPU multiplies bfloat16: measured at first use, and kept beside the artifacts.

    MAX_ZIMAGE_INNER_LOOP, or what was measured here before, or a measurement

A processor that multiplies pairs of bfloat16 numbers need not do so faster than it multiplies float32: the instruction
has half the rate of float32's on some. One product is compiled in both ways, which takes seconds, and both are called
in turn for some milliseconds. What came of it holds for the processor's name, its instructions and the kernels'
sources, so that all starts draw the same. Where both take nearly as long it is pairs, whose rows are half as large.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from max.driver import CPU, Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession
from max.experimental.nn import Module
from max.graph import DeviceRef
from max.graph import Module as GraphModule

from max_zimage.compile.artifacts import scratch, sources_digest
from max_zimage.compile.kept_kernels import kept_package
from max_zimage.graphs import cpu
from max_zimage.graphs.cpu import InnerLoop, multiplying_by
from max_zimage.graphs.kernel_library import bring_package_by, compile_with_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.product import Product
from max_zimage.host.folders import artifact_folder, room_to_compile
from max_zimage.host.processor import processor
from max_zimage.progress import note

VARIABLE = "MAX_ZIMAGE_INNER_LOOP"
"""`pairs` or `widened`; what is measured if it is not set."""
LOOPS: tuple[InnerLoop, ...] = get_args(InnerLoop)

_ROWS, _INPUTS, _OUTPUTS = 96, 2048, 1024  # 0.4 GFLOP; the weight's 4 MB come from a cache that cores share, or memory
_CALLS = 9
_GAIN = 0.95  # share of the other's time that widening has to be below
_deciding = threading.Lock()

bring_package_by(kept_package)  # whoever traces a graph asks here first


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a measurement came to.

    Attributes:
        loop: The faster way.
        pairs: Seconds of the fastest call.
        widened: The same of the other way.
    """

    loop: InnerLoop
    pairs: float
    widened: float


def given() -> InnerLoop | None:
    """What the variable says; None if it is not set.

    Raises:
        ValueError: If it is no way, or one that this processor has not.
    """
    value, there = os.environ.get(VARIABLE), cpu.inner_loops()
    if value is None:
        return None
    for loop in LOOPS:
        if value == loop and loop in there:
            return loop
    if value in LOOPS:
        raise ValueError(
            f"{VARIABLE} is {value}, and this processor has no instruction for it (avx512_bf16); unset it: it "
            f"multiplies in the other way, {' or '.join(there)}"
        )
    raise ValueError(f"{VARIABLE} must be {' or '.join(LOOPS)}, or not be set, got {value!r}")


def loop_of(module: Module[..., Any], device: Device) -> InnerLoop:
    """In which way a graph multiplies; measures where that is open.

    Args:
        module: The graph's.
        device: Where it runs.

    Raises:
        ValueError: As `given`.
    """
    has_choice = device.is_host and any(parameter.dtype == DType.bfloat16 for _, parameter in module.parameters)
    if not has_choice or len(cpu.inner_loops()) == 1:
        return "pairs"
    with _deciding:
        return given() or decided().loop


@cache
def decided() -> Measured:
    """What was measured on this processor, now or before."""
    if (before := kept()) is not None:
        return before
    try:
        measured = _chosen(_seconds())
    except Exception as error:  # whatever MAX's compiler says: the graph that is wanted may compile all the same
        note(f"which inner loop is faster here could not be measured, pairs are taken: {error}")
        return Measured(loop="pairs", pairs=0.0, widened=0.0)
    return _keep(measured)


def kept() -> Measured | None:
    """What was measured on this processor before; None if nothing was, or the file cannot be read."""
    if (file := _file()) is None:
        return None
    try:
        found = json.loads(file.read_text())
        loop = next(each for each in LOOPS if each == found["loop"])
        return Measured(loop=loop, pairs=float(found["pairs"]), widened=float(found["widened"]))
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return None


def described() -> str:
    """In which way this processor multiplies bfloat16, and why; nothing is measured for it.

    Raises:
        ValueError: As `given`.
    """
    if (said := given()) is not None:
        return f"{said}, as {VARIABLE} says"
    if len(cpu.inner_loops()) == 1:
        return "widened, for the processor has no AVX-512 BF16"
    if (found := kept()) is None:
        return "pairs or widened, measured when the first bfloat16 graph is made"
    return f"{found.loop}, as measured: pairs {1e3 * found.pairs:.2f} ms, widened {1e3 * found.widened:.2f} ms"


def _seconds() -> dict[InnerLoop, float]:
    """The shortest call of one product, in each way."""
    session, together, product = InferenceSession(devices=[CPU()]), GraphModule(), Product(_ROWS, _INPUTS, _OUTPUTS)
    traced = []
    for loop in LOOPS:
        with multiplying_by(loop):
            module = build(lambda: product, DType.bfloat16, DeviceRef.CPU())
            types = module.input_types(DType.bfloat16, DeviceRef.CPU())
            traced.append(trace(module, types, f"product_{loop}", together))
    with room_to_compile():
        models = session.init_all(compile_with_kernels(session, together, traced), weights_registry={})
    inputs = [_ones(tuple(int(side) for side in each.shape)) for each in types]
    return fastest({loop: partial(models[f"product_{loop}"].execute, *inputs) for loop in LOOPS}, _CALLS)


def fastest(calls: Mapping[InnerLoop, Callable[[], object]], count: int) -> dict[InnerLoop, float]:
    """Call each in turn, and once before; what other programs take of the processor, they take of all.

    Returns:
        Seconds of the shortest call of each.
    """
    seconds: dict[InnerLoop, list[float]] = {loop: [] for loop in calls}
    for call in calls.values():
        call()
    for _ in range(count):
        for loop, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[loop].append(time.perf_counter() - begin)
    return {loop: min(each) for loop, each in seconds.items()}


def _chosen(seconds: Mapping[InnerLoop, float]) -> Measured:
    pairs, widened = seconds["pairs"], seconds["widened"]
    return Measured(loop="widened" if widened < _GAIN * pairs else "pairs", pairs=pairs, widened=widened)


def _ones(shape: tuple[int, ...]) -> Buffer:
    return Buffer.from_numpy(np.full(shape, 0x3F80, np.uint16)).view(DType.bfloat16, shape)


def _file() -> Path | None:
    if (folder := artifact_folder()) is None:
        return None
    parts = (processor(), str(os.cpu_count()), *sorted(cpu.instructions()), sources_digest())
    return folder / f"inner-loop-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.json"


def _keep(measured: Measured) -> Measured:
    """Write it down, unless another process was first: what that one found then holds for both.

    Where it cannot be written the next process measures again, which is no error.
    """
    if (file := _file()) is None:
        return measured
    try:
        with scratch(file.parent) as (_, written):
            written.write_text(json.dumps({"processor": processor(), **asdict(measured)}))
            if kept() is None:
                file.unlink(missing_ok=True)  # a damaged one
            os.link(written, file)
    except FileExistsError:
        return kept() or measured
    except OSError:
        return measured
    return measured
