"""The block's products in float8 with a scale for each row of both matrices, by PyTorch: what float8 could gain."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.functional import linear

from benchmarks.gpu_run import cases
from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.gpu_run.variants import widths

_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_ALLOWED = 0.06
"""Of random numbers, whose product has a relative error of 0.037 with these scales."""


def parts(bench: Bench) -> list[Part]:
    """Each product, summed fast and summed exactly."""
    return [
        Part(name=f"{inputs} to {outputs}", seconds=3, measure=partial(_measured, bench, inputs, outputs))
        for inputs, outputs in widths(bench.shape).values()
    ]


def _measured(bench: Bench, inputs: int, outputs: int) -> Iterator[Row]:
    tokens = bench.shape.tokens
    x = torch.randn(tokens, inputs, device=bench.torch_device)
    weight = torch.randn(outputs, inputs, device=bench.torch_device) / inputs**0.5
    right = linear(x.double(), weight.double())
    (left, left_scale), (turned, turned_scale) = quantized(x), quantized(weight)

    def product(fast: bool) -> torch.Tensor:
        scales = {"scale_a": left_scale, "scale_b": turned_scale.T}
        return torch._scaled_mm(left, turned.T, **scales, out_dtype=torch.bfloat16, use_fast_accum=fast)

    names = {"torch": True, "torch, summed exactly": False}
    timings = bench.timed({name: partial(product, fast) for name, fast in names.items()})
    for name, fast in names.items():
        relative, largest = cases.error_in(product(fast)[None], right[None], [tokens])
        yield Row(
            case=f"float8 product {inputs} to {outputs}, {tokens} tokens",
            variant=name,
            dtype="float8_e4m3fn",
            timing=timings[name],
            gflop=2e-9 * tokens * inputs * outputs,
            relative_l2=relative,
            max_abs=largest,
            allowed=_ALLOWED,
        )


def quantized(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8 numbers and the float32 scale of each row, [rows, columns] and [rows, 1]."""
    scale = values.abs().amax(dim=1, keepdim=True).float() / _LARGEST
    return (values / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn), scale
