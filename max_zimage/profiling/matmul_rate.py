"""The machine's rate in one matrix product, to which all others are compared."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, TensorType

from max_zimage.checkpoint.layout import weight_buffer
from max_zimage.compile.compiler import CompiledGraph, compile_graph
from max_zimage.compile.work import linear
from max_zimage.device.devices import upload_as
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.layers import build
from max_zimage.graphs.linear import linear as graph_linear

_CALLS = 5
_QUEUED = 20  # calls of an accelerator between two synchronizations, so that what a launch costs the host is hidden


@dataclass(frozen=True, kw_only=True)
class Product:
    """[tokens, width] times [hidden, width] transposed."""

    tokens: int
    width: int
    hidden: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return linear(self.tokens, self.width, self.hidden, 0).flops

    @property
    def gflop(self) -> float:
        """The same in 10^9."""
        return self.flops / 1e9


FULL = Product(tokens=1056, width=3840, hidden=10240)
"""The first feed-forward product of the published models, for the tokens of a 512x512 picture."""


def measured_rate(graph: CompiledGraph, product: Product, dtype: ModelDtype, device: Device) -> float:
    """Run the product a few times.

    Args:
        graph: From `product_graph`.
        product: What it multiplies.
        dtype: Of its numbers.
        device: Where it runs.

    Returns:
        Floating-point operations a second of the fastest calls.
    """
    shape = (1, product.tokens, product.width)
    numbers = np.random.default_rng(0).standard_normal(shape, np.float32)
    inputs = upload_as(numbers, dtype, device)
    calls = 1 if device.is_host else _QUEUED
    graph(inputs)
    fastest = min(_seconds(graph, inputs, calls, device) for _ in range(_CALLS))
    return calls * product.flops / fastest


def product_graph(product: Product, dtype: ModelDtype, device: Device, session: InferenceSession) -> CompiledGraph:
    """The product as a graph, its weights as a layer has them: packed where the graphs' large layers are."""
    place = DeviceRef.from_device(device)
    module = build(lambda: graph_linear(product.width, product.hidden), DType[dtype], place)
    types = [TensorType(DType[dtype], [1, "tokens", product.width], place)]
    weights = np.random.default_rng(1).standard_normal((product.hidden, product.width), np.float32)
    weights *= np.float32(product.width**-0.5)
    data = {"weight": weight_buffer(weights, DType[dtype], "panels" if device.is_host else None)}
    return compile_graph("matmul", module, types, data, session, spec=product, device=device)


def _seconds(graph: CompiledGraph, inputs: Buffer, calls: int, device: Device) -> float:
    device.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        graph(inputs)
    device.synchronize()
    return time.perf_counter() - begin
