"""The machine's matmul rate, to which all shares refer: torch, MAX and the project's kernel, float32 and bfloat16.

One shape, that of the first feed-forward product at the real width: tokens [1056, 3840] times weights [10240, 3840]
transposed. All get the weights as their layers have them, and no time to repack them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.experimental.nn import Linear, Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from benchmarks.compiling import CompiledModule, compiled
from benchmarks.measure import Row, interleave, max_abs
from max_zimage.checkpoint.layout import weight_buffer
from max_zimage.device.devices import upload_as
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.graphs.linear import linear
from max_zimage.profiling import matmul_rate
from max_zimage.profiling.matmul_rate import Product

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

FULL = matmul_rate.FULL
QUICK = Product(tokens=32, width=64, hidden=96)


class _Projection(Module[[Tensor], Tensor]):
    def __init__(self, product: Product) -> None:
        self.linear = Linear(product.width, product.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def rows(product: Product, repeats: int) -> list[Row]:
    """Measure every engine and dtype."""
    measured = []
    for dtype in DTYPES:
        inputs, weights = _numbers(product, dtype)
        graph = _compiled(product, dtype, weights)
        buffer = upload_as(inputs, dtype, CPU())
        theirs = [torch.from_numpy(array).to(TORCH_DTYPES[dtype]) for array in (inputs, weights)]
        calls: dict[str, Callable[[], object]] = {
            "torch": functools.partial(torch.nn.functional.linear, *theirs),
            "MAX": functools.partial(graph, buffer),
        }
        own = _own(product, dtype, weights)
        calls["ours"] = functools.partial(own, upload_as(inputs[None], dtype, CPU()))
        timings = interleave(calls, repeats)
        expected = torch.nn.functional.linear(*(tensor[:8].double() for tensor in theirs)).numpy()
        outputs = {"torch": torch.nn.functional.linear(*theirs), "MAX": as_torch(graph(buffer)[0])}
        outputs["ours"] = as_torch(own(upload_as(inputs[None], dtype, CPU()))[0])[0]
        seconds = {"MAX": graph.seconds, "ours": own.seconds if own is not None else None}
        roof = max(product.gflop / timing.median for timing in timings.values())
        measured += [
            Row(
                case=f"matmul {dtype}",
                variant=name,
                dtype=dtype,
                sizes=f"{product.tokens}x{product.width}x{product.hidden}",
                timing=timing,
                compile_seconds=seconds.get(name),
                gflop=product.gflop,
                roof=roof,
                max_abs=max_abs(outputs[name][:8, :8].double().numpy(), expected),
                reference=name == "torch",
            )
            for name, timing in timings.items()
        ]
    return measured


def roofs(measured: list[Row]) -> dict[str, float]:
    """Best rate of each dtype, GFLOP/s, from the rows of this part."""
    best: dict[str, float] = {}
    for row in measured:
        best[row.dtype] = max(best.get(row.dtype, 0.0), row.rate or 0.0)
    return best


def as_torch(buffer: Buffer) -> torch.Tensor:
    """A buffer on the host as a torch tensor of the same dtype; nothing is copied."""
    return torch.from_dlpack(buffer)


def _own(product: Product, dtype: ModelDtype, weights: np.ndarray) -> CompiledModule:
    """The project's kernel."""
    types = [TensorType(DType[dtype], [1, "tokens", product.width], DeviceRef.CPU())]
    data = {"weight": weight_buffer(weights, DType[dtype], "panels")}
    return compiled(lambda: linear(product.width, product.hidden), dtype, types, data)


def _numbers(product: Product, dtype: ModelDtype) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and weights that the dtype holds exactly."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((product.tokens, product.width), (product.hidden, product.width))
    tensors = (torch.randn(shape, generator=generator).to(TORCH_DTYPES[dtype]).float() for shape in shapes)
    inputs, weights = (tensor.numpy() for tensor in tensors)
    return inputs, weights


def _compiled(product: Product, dtype: ModelDtype, weights: np.ndarray) -> CompiledModule:
    types = [TensorType(DType[dtype], ["tokens", product.width], DeviceRef.CPU())]
    return compiled(lambda: _Projection(product), dtype, types, {"linear.weight": upload_as(weights, dtype, CPU())})
