"""The ops of `kernels` at the real model's width: ours, their twins of plain operations, and PyTorch.

Weights are packed beforehand, as loading does. PyTorch's row is the same formula in its own operations, attention in it
`scaled_dot_product_attention`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from max.driver import Buffer
from max.dtype import DType

from benchmarks.compiling import CompiledModule, compiled
from benchmarks.kernel_cases import Case, Sizes, cases
from benchmarks.machine import as_torch
from benchmarks.measure import Row, interleave, relative_l2
from max_zimage.checkpoint.layout import weight_buffer
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.graphs.kernel_library import without_kernels

_TWIN = "MAX, plain operations"


def rows(sizes: Sizes, repeats: int, roofs: dict[str, float]) -> list[Row]:
    """Measure every op in every dtype."""
    return [row for dtype in DTYPES for row in _rows_of_dtype(sizes, dtype, repeats, roofs)]


def _rows_of_dtype(sizes: Sizes, dtype: ModelDtype, repeats: int, roofs: dict[str, float]) -> list[Row]:
    return [row for case in cases(sizes, dtype) for row in _rows(case, repeats, roofs)]


def _rows(case: Case, repeats: int, roofs: dict[str, float]) -> list[Row]:
    ours = _compiled(case)
    with without_kernels():
        twin = _compiled(case)
    buffers = [Buffer.from_dlpack(tensor) for tensor in case.inputs]
    calls: dict[str, Callable[[], object]] = {
        "torch": case.theirs,
        _TWIN: functools.partial(twin, *buffers),
        "ours": functools.partial(ours, *buffers),
    }
    timings = interleave(calls, repeats)
    exact = case.exact().numpy() if case.exact else None
    outputs = {"torch": case.theirs(), _TWIN: as_torch(twin(*buffers)[0]), "ours": as_torch(ours(*buffers)[0])}
    seconds = {"ours": ours.seconds, _TWIN: twin.seconds}
    return [
        Row(
            case=f"kernels {case.dtype}: {case.name}",
            variant=name,
            dtype=case.dtype,
            sizes=case.sizes,
            timing=timing,
            compile_seconds=seconds.get(name),
            gflop=case.gflop,
            roof=roofs.get(case.dtype),
            relative_l2=None if exact is None else relative_l2(outputs[name].double().numpy(), exact),
            reference=name == "torch",
        )
        for name, timing in timings.items()
    ]


def _compiled(case: Case) -> CompiledModule:
    weights = {name: weight_buffer(data.numpy(), DType[case.dtype], how) for name, (data, how) in case.weights.items()}
    return compiled(case.make, case.dtype, case.types, weights)
