"""In which way a CPU multiplies bfloat16: measured at first use, and kept beside the artifacts.

    MAX_ZIMAGE_INNER_LOOP, or what was measured here before, or a measurement

A processor that multiplies pairs of bfloat16 numbers need not do so faster than it multiplies float32: the instruction
has half the rate of float32's on some. One product is compiled in each way that the processor has, which takes seconds,
and all are called in turn for some milliseconds. What came of it holds for the processor's name, its instructions and
the kernels' sources, so that all starts draw the same. Where others take nearly as long it is pairs, whose rows take
half the memory. A way whose product is not the others' is left out: no machine with tiles has been at hand to try them.
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
import numpy.typing as npt
from max.driver import CPU, Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession
from max.experimental.nn import Module
from max.graph import DeviceRef
from max.graph import Module as GraphModule

from max_zimage.compile.artifacts import scratch, sources_digest
from max_zimage.compile.kept_kernels import kept_package
from max_zimage.graphs import cpu
from max_zimage.graphs.cpu import NEEDS, InnerLoop, multiplying_by
from max_zimage.graphs.kernel_library import bring_package_by, compile_with_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.product import Product
from max_zimage.host.folders import artifact_folder, room_to_compile
from max_zimage.host.processor import processor
from max_zimage.progress import note

VARIABLE = "MAX_ZIMAGE_INNER_LOOP"
"""`pairs`, `widened` or `tiles`; what is measured if it is not set."""
LOOPS: tuple[InnerLoop, ...] = get_args(InnerLoop)

_ROWS, _INPUTS, _OUTPUTS = 96, 2048, 1024  # 0.4 GFLOP; the weight's 4 MB come from a cache that cores share, or memory
_CALLS = 9
_GAIN = 0.95  # share of the time of pairs that another way has to be below
_ALIKE = 0.02  # of the largest number, of which both are rounded to eight bits
_deciding = threading.Lock()

bring_package_by(kept_package)  # whoever traces a graph asks here first


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a measurement came to.

    Attributes:
        loop: The fastest way.
        seconds: Of the shortest call in each; nothing where none could be measured.
    """

    loop: InnerLoop
    seconds: Mapping[InnerLoop, float]


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
        need = next(NEEDS[loop] for loop in LOOPS if loop == value)
        raise ValueError(
            f"{VARIABLE} is {value}, and this processor has no instruction for it ({need}), or Linux does not lend it; "
            f"unset it: what is there is {' or '.join(there)}"
        )
    raise ValueError(f"{VARIABLE} must be {', '.join(LOOPS[:-1])} or {LOOPS[-1]}, or not be set, got {value!r}")


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
        return "pairs"  # the kernels widen where the processor has no instruction for them
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
        return Measured(loop="pairs", seconds={})
    return _keep(measured)


def kept() -> Measured | None:
    """What was measured on this processor before; None if nothing was, or the file cannot be read."""
    if (file := _file()) is None:
        return None
    try:
        found = json.loads(file.read_text())
        seconds = {loop: float(found["seconds"][loop]) for loop in LOOPS if loop in found["seconds"]}
        return Measured(loop=next(loop for loop in seconds if loop == found["loop"]), seconds=seconds)
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
        return f"{' or '.join(cpu.inner_loops())}, measured when the first bfloat16 graph is made"
    each = ", ".join(f"{loop} {1e3 * seconds:.2f} ms" for loop, seconds in found.seconds.items())
    return f"{found.loop}, as measured: {each}"


def _seconds() -> dict[InnerLoop, float]:
    """The shortest call of one product, in each way whose product is right."""
    session, together, product = InferenceSession(devices=[CPU()]), GraphModule(), Product(_ROWS, _INPUTS, _OUTPUTS)
    traced, loops = [], cpu.inner_loops()
    for loop in loops:
        with multiplying_by(loop):
            module = build(lambda: product, DType.bfloat16, DeviceRef.CPU())
            types = module.input_types(DType.bfloat16, DeviceRef.CPU())
            traced.append(trace(module, types, f"product_{loop}", together))
    with room_to_compile():
        models = session.init_all(compile_with_kernels(session, together, traced), weights_registry={})
    inputs = [_numbers(tuple(int(side) for side in each.shape)) for each in types]
    calls = {loop: partial(models[f"product_{loop}"].execute, *inputs) for loop in loops}
    right = alike({loop: _as_float32(call()[0]) for loop, call in calls.items()})
    return fastest({loop: calls[loop] for loop in right}, _CALLS)


def alike(products: Mapping[InnerLoop, npt.NDArray[np.float32]]) -> list[InnerLoop]:
    """Ways whose product is the first one's, but for rounding."""
    first = next(iter(products.values()))
    allowed = _ALIKE * np.abs(first).max()
    right = [loop for loop, product in products.items() if np.abs(product - first).max() <= allowed]
    for loop in products.keys() - right:
        note(f"{loop} multiplies wrongly on this processor and is left out; please report it with the processor's name")
    return right


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
    usual: InnerLoop = "pairs" if "pairs" in seconds else "widened"
    loop = min(seconds, key=lambda each: seconds[each])
    return Measured(loop=loop if seconds[loop] < _GAIN * seconds[usual] else usual, seconds=seconds)


def _numbers(shape: tuple[int, ...]) -> Buffer:
    """bfloat16 numbers of both signs, 1 to 2 large."""
    drawn = np.random.default_rng(0).integers(0x3F80, 0x4000, shape, np.uint16)
    return Buffer.from_numpy(drawn ^ (drawn << 15)).view(DType.bfloat16, shape)


def _as_float32(result: Buffer) -> npt.NDArray[np.float32]:
    bits = result.view(DType.uint16, result.shape).to_numpy().astype(np.uint32)
    return (bits << 16).view(np.float32)


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
