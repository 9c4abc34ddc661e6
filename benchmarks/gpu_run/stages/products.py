"""The block's products by each algorithm that cublasLt proposes: what a search would gain over its favourite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.functional import linear

from benchmarks.gpu_run import cases
from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.cublaslt import Lt
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.gpu_run.variants import widths

_ALGORITHMS = 8


def parts(bench: Bench) -> list[Part]:
    """Each product."""
    return [
        Part(name=f"{inputs} to {outputs}", seconds=5, measure=partial(_measured, bench, inputs, outputs))
        for inputs, outputs in widths(bench.shape).values()
    ]


def _measured(bench: Bench, inputs: int, outputs: int) -> Iterator[Row]:
    """Every algorithm interleaved with PyTorch's product, which is cuBLAS's own choice."""
    tokens = bench.shape.tokens
    case, gflop = f"product {inputs} to {outputs}, {tokens} tokens, by algorithm", 2e-9 * tokens * inputs * outputs
    x = torch.randn(tokens, inputs, device=bench.torch_device).to(bench.torch_dtype)
    weight = (torch.randn(outputs, inputs, device=bench.torch_device) / inputs**0.5).to(bench.torch_dtype)
    calls: dict[str, Callable[[], object]] = {"torch": partial(linear, x, weight)}
    right = linear(x.double(), weight.double())
    errors = {"torch": cases.error_in(linear(x, weight)[None], right[None], [tokens])}
    if bench.small:
        yield Row(case=case, variant="cublasLt", dtype=bench.dtype, state="skipped", note="it is for NVIDIA GPUs")
    else:
        y = torch.empty(tokens, outputs, dtype=bench.torch_dtype, device=bench.torch_device)
        handle = bench.once("cublaslt", Lt)
        for number, call in enumerate(handle.algorithms(x, weight, y, _ALGORITHMS)):
            y.fill_(float("nan"))
            call()
            bench.synchronize()
            name = f"cublasLt {number}"
            errors[name], calls[name] = cases.error_in(y[None], right[None], [tokens]), call
    for name, timing in bench.timed(calls, samples=6, per_sample=10).items():
        relative, largest = errors[name]
        yield Row(
            case=case,
            variant=name,
            dtype=bench.dtype,
            timing=timing,
            gflop=gflop,
            relative_l2=relative,
            max_abs=largest,
            allowed=2 * errors["torch"][0] + cases.FLOOR,
        )
