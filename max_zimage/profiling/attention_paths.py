"""The ways to compute attention that `--attention-backend` chooses between: how fast they are, how near the plain one.

Inputs and results are float32, whatever the path runs in, so that results can be compared; casts are part of the time.

Reference: `reference/generation.md` section 11, Profiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import log10
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Device
from max.dtype import DType
from max.engine import InferenceSession
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.compile import work
from max_zimage.compile.compiler import CompiledGraph, compile_graph, wait_for
from max_zimage.device.devices import upload
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.attention import joint_attention
from max_zimage.graphs.model.attention_backends import Backend, available

PLAIN: Backend = "plain"
_WINDOW = 7
_STABILIZERS = 0.01, 0.03

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Of queries, keys and values, [1, tokens, heads, head_dim] each."""

    tokens: int
    heads: int
    head_dim: int


class _Path(Module[[Tensor], Tensor]):
    """float32 [1, tokens, 3 heads, head_dim] -> float32 [1, tokens, heads, head_dim]."""

    def __init__(self, backend: Backend, dtype: DType) -> None:
        self.backend, self.dtype = backend, dtype

    def forward(self, qkv: Tensor) -> Tensor:
        # As layers compute it, but for norms and RoPE; the plain way rounds nothing but its inputs.
        dtype = DType.float32 if self.backend == PLAIN else self.dtype
        rounded = qkv.cast(self.dtype).cast(dtype)
        return joint_attention(rounded, heads=int(qkv.shape[2]) // 3, backend=self.backend).cast(DType.float32)


def compare(
    device: Device, dtype: ModelDtype, shape: AttentionShape, session: InferenceSession, *, repeats: int
) -> list[dict[str, Any]]:
    """Run every path on the same random numbers.

    Args:
        device: Where.
        dtype: That the paths run in; the plain one computes in float32 from numbers rounded to it.
        shape: Of the inputs.
        session: Compiles them.
        repeats: Runs that count, after one that does not.

    Returns:
        A row a path: milliseconds of the run in the middle, TFLOP/s, speedup over the plain one, and PSNR in dB, SSIM
        and the largest difference from it; None for the plain one itself, and for the PSNR of equal results.
    """
    size = (1, shape.tokens, 3 * shape.heads, shape.head_dim)
    qkv = upload(np.random.default_rng(0).standard_normal(size, np.float32), device)
    names = available(DType[dtype], device, (shape.head_dim,))
    graphs = {name: _graph(name, dtype, shape, device, session) for name in names}
    wait_for(list(graphs.values()))
    flops = work.attention(1, shape.tokens, shape.heads, shape.head_dim, size=0).flops
    found: list[dict[str, Any]] = []
    results: dict[str, Floats] = {}
    for name, graph in graphs.items():
        graph(qkv)
        seconds = median(_seconds(partial(graph, qkv), device) for _ in range(repeats))
        results[name] = graph(qkv)[0].to_numpy().reshape(shape.tokens, -1)
        found.append({"path": name, "ms": 1e3 * seconds, "tflop_per_s": flops / seconds / 1e12})
    plain = found[-1]["ms"]
    return [each | {"speedup": plain / each["ms"]} | _nearness(each["path"], results) for each in found]


def psnr(found: Floats, reference: Floats) -> float | None:
    """Peak signal-to-noise ratio in dB, where the peak is the reference's range; None for equal arrays."""
    error = float(np.mean((found.astype(np.float64) - reference) ** 2))
    return 20 * log10(float(np.ptp(reference))) - 10 * log10(error) if error else None


def ssim(found: Floats, reference: Floats) -> float:
    """Structural similarity, the mean over all windows of 7x7 numbers.

    Args:
        found: float32 [rows, columns], at least 7 of each.
        reference: The same; its range is that of the numbers.

    Reference: Wang et al. 2004, with uniform windows.
    """
    first, second = found.astype(np.float64), reference.astype(np.float64)
    low, high = ((factor * float(np.ptp(second))) ** 2 for factor in _STABILIZERS)
    means = _window_means(first), _window_means(second)
    variances = (_window_means(first**2) - means[0] ** 2, _window_means(second**2) - means[1] ** 2)
    covariance = _window_means(first * second) - means[0] * means[1]
    above = (2 * means[0] * means[1] + low) * (2 * covariance + high)
    below = (means[0] ** 2 + means[1] ** 2 + low) * (variances[0] + variances[1] + high)
    return float(np.mean(above / below))


def _window_means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    rows = sums[_WINDOW:] - sums[:-_WINDOW]
    return np.asarray((rows[:, _WINDOW:] - rows[:, :-_WINDOW]) / _WINDOW**2)


def _nearness(name: str, results: Mapping[str, Floats]) -> dict[str, float | None]:
    found, plain = results[name], results[PLAIN]
    if name == PLAIN:
        return {"psnr_db": None, "ssim": None, "max_abs": None}
    largest = float(np.max(np.abs(found - plain)))
    return {"psnr_db": psnr(found, plain), "ssim": ssim(found, plain), "max_abs": largest}


def _graph(
    name: Backend,
    dtype: ModelDtype,
    shape: AttentionShape,
    device: Device,
    session: InferenceSession,
) -> CompiledGraph:
    place = DeviceRef.from_device(device)
    module = build(lambda: _Path(name, DType[dtype]), DType[dtype], place)
    types = [TensorType(DType.float32, [1, "tokens", 3 * shape.heads, shape.head_dim], place)]
    spec = shape.heads, shape.head_dim
    return compile_graph(f"attention_{name}", module, types, {}, session, spec=spec, device=device)


def _seconds(work: Callable[[], object], device: Device) -> float:
    device.synchronize()
    begin = time.perf_counter()
    work()
    device.synchronize()
    return time.perf_counter() - begin
