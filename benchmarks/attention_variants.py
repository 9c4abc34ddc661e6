"""One way to compute attention, in the process that `benchmarks.attention` starts for it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from max.driver import CPU
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from benchmarks.attention import Shape
from benchmarks.compiling import CompiledModule, compiled
from benchmarks.measure import PAUSE_SECONDS, relative_l2
from max_zimage.device.devices import upload
from max_zimage.graphs.model.attention import attention, joint_attention

_CHECKED_ROWS = 8

Array = npt.NDArray[np.float32]
Call = Callable[[], Array]
"""Computes [1, tokens, heads, head_dim]."""


class Joint(Module[[Tensor], Tensor]):
    """The engine's, from queries, keys and values as one product makes them."""

    def forward(self, qkv: Tensor) -> Tensor:
        return joint_attention(qkv, heads=int(qkv.shape[2]) // 3)


class Blocked(Module[[Tensor, Tensor, Tensor], Tensor]):
    """MAX's, which keeps no scores either."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value, scale=int(query.shape[3]) ** -0.5)


class Scores(Module[[Tensor, Tensor], Tensor]):
    """Scaled scores, [1, heads, tokens, tokens]."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        query, key = F.permute(query, [0, 2, 1, 3]), F.permute(key, [0, 2, 3, 1])
        return query @ key * int(query.shape[3]) ** -0.5


class Softmax(Module[[Tensor], Tensor]):
    """Weights from scores."""

    def forward(self, scores: Tensor) -> Tensor:
        return F.softmax(scores)


class Mix(Module[[Tensor, Tensor], Tensor]):
    """Weighted sums of values, [1, tokens, heads, head_dim]."""

    def forward(self, weights: Tensor, value: Tensor) -> Tensor:
        return F.permute(weights @ F.permute(value, [0, 2, 1, 3]), [0, 2, 1, 3])


class OneGraph(Module[[Tensor, Tensor, Tensor], Tensor]):
    """Those three together."""

    def __init__(self) -> None:
        self.scores, self.softmax, self.mix = Scores(), Softmax(), Mix()

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.mix(self.softmax(self.scores(query, key)), value)


def main() -> None:
    """Make a variant ready, call it, print JSON."""
    variant, *numbers = sys.argv[1:]
    tokens, heads, head_dim, calls = map(int, numbers)
    shape = Shape(tokens=tokens, heads=heads, head_dim=head_dim)
    generator = np.random.default_rng(0)
    size = (1, shape.tokens, shape.heads, shape.head_dim)
    arrays = [generator.standard_normal(size, dtype=np.float32) for _ in range(3)]
    make = {"torch": _torch, "joint": _joint, "blocked": _blocked, "naive": _naive, "one_graph": _one_graph}[variant]
    call = make(shape, arrays)

    before, seconds = _reset_peak_mib(), []
    for _ in range(calls):
        time.sleep(PAUSE_SECONDS)
        begin = time.perf_counter()
        output = call()
        seconds.append(time.perf_counter() - begin)
        head = output[0, :_CHECKED_ROWS].copy()
        del output
    peak = _peak_mib() - before
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "relative_l2": relative_l2(head, _exact(arrays))}))


def _reset_peak_mib() -> float:
    """Forget the peak so far, which loading libraries has made, and return what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def _peak_mib() -> float:
    return _status_mib("VmHWM")


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _exact(arrays: list[Array]) -> npt.NDArray[np.float64]:
    """The output's first rows in float64, [rows, heads, head_dim]."""
    query, key, value = (array[0].transpose(1, 0, 2) for array in arrays)
    scores = query[:, :_CHECKED_ROWS].astype(np.float64) @ key.transpose(0, 2, 1) * query.shape[-1] ** -0.5
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True) @ value).transpose(1, 0, 2)


def _torch(shape: Shape, arrays: list[Array]) -> Call:
    """As diffusers calls it: heads moved forward as a view."""
    torch.set_num_threads(os.cpu_count() or 1)
    query, key, value = (torch.from_numpy(array).transpose(1, 2) for array in arrays)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(query, key, value).transpose(1, 2).numpy()


def _joint(shape: Shape, arrays: list[Array]) -> Call:
    graph = _compiled(Joint, [[1, shape.tokens, 3 * shape.heads, shape.head_dim]])
    qkv = upload(np.concatenate(arrays, axis=2), CPU())
    return lambda: graph(qkv)[0].to_numpy()


def _blocked(shape: Shape, arrays: list[Array]) -> Call:
    return _single(Blocked, shape, arrays)


def _one_graph(shape: Shape, arrays: list[Array]) -> Call:
    return _single(OneGraph, shape, arrays)


def _single(make: Callable[[], Module[..., Tensor]], shape: Shape, arrays: list[Array]) -> Call:
    graph = _compiled(make, [_tokens(shape)] * 3)
    buffers = [upload(array, CPU()) for array in arrays]
    return lambda: graph(*buffers)[0].to_numpy()


def _naive(shape: Shape, arrays: list[Array]) -> Call:
    square, tokens = [1, shape.heads, shape.tokens, shape.tokens], _tokens(shape)
    scores = _compiled(Scores, [tokens, tokens])
    softmax = _compiled(Softmax, [square])
    mix = _compiled(Mix, [square, tokens])
    query, key, value = (upload(array, CPU()) for array in arrays)
    return lambda: mix(*softmax(*scores(query, key)), value)[0].to_numpy()


def _compiled(make: Callable[[], Module[..., Tensor]], shapes: list[list[int]]) -> CompiledModule:
    return compiled(make, "float32", [TensorType(DType.float32, shape, DeviceRef.CPU()) for shape in shapes], {})


def _tokens(shape: Shape) -> list[int]:
    return [1, shape.tokens, shape.heads, shape.head_dim]


if __name__ == "__main__":
    main()
