"""A block in every variant, then its pieces alone: what each change is worth, and what is left of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from max.driver import Buffer
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.gpu_run import cases
from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.cases import BlockCase, Lengths
from benchmarks.gpu_run.loading import Loaded, load, random_numbers
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.stages.ops import load_blocks
from benchmarks.gpu_run.steps import Part
from benchmarks.gpu_run.variants import widths
from max_zimage.compile import work

_INPUTS = 3
"""Sets of inputs that calls take in turn, so that none finds its own in the cache."""


def parts(bench: Bench) -> list[Part]:
    """The block, attention, the products and what stands between them."""
    measured = (("variants", 20, _blocks), ("attention", 10, _attention), ("products", 15, _products))
    return [
        Part(name=name, seconds=seconds, measure=partial(each, bench))
        for name, seconds, each in (*measured, ("between products", 10, _elementwise))
    ]


def _blocks(bench: Bench) -> Iterator[Row]:
    """All variants interleaved; every token exists."""
    shape = bench.shape
    case = BlockCase(bench, bench.once("block", lambda: cases.block(bench)), _whole(bench))
    loaded = bench.once("blocks", lambda: load_blocks(bench))
    calls = {name: _call(graph, [case.arguments(name)]) for name, graph in loaded.items()}
    yield from _rows(bench, loaded, calls, dict.fromkeys(loaded, shape.gflop), {})


def _attention(bench: Bench) -> Iterator[Row]:
    """Each kernel of MAX's, and PyTorch's."""
    shape = bench.shape
    loaded = bench.once("attentions", lambda: load(bench, "attentions", random_numbers))
    size = (1, shape.tokens, shape.num_heads, shape.head_dim)
    heads = [torch.randn(size, device=bench.torch_device).to(bench.torch_dtype) for _ in range(3)]
    given = [bench.upload(each) for each in heads]
    more = {
        "padded": [bench.integers([shape.tokens])],
        "ragged": [bench.integers([0, shape.tokens])],
        "whole": [],
    }
    calls: dict[str, Callable[[], object]] = {
        name: _call(graph, [[*given, *more[name]]]) for name, graph in loaded.items()
    }
    query, key, value = (each.transpose(1, 2) for each in heads)
    calls["torch"] = lambda: scaled_dot_product_attention(query, key, value)
    gflop = work.attention(1, shape.tokens, shape.num_heads, shape.head_dim, size=0).flops / 1e9
    yield from _rows(bench, loaded, calls, dict.fromkeys(calls, gflop), {})


def _products(bench: Bench) -> Iterator[Row]:
    """Each product by MAX and by PyTorch."""
    sizes = widths(bench.shape)

    def weight_of(name: str) -> torch.Tensor:
        return random_numbers(name, "weight", sizes[name][::-1])

    loaded = bench.once("products", lambda: load(bench, "products", lambda name, *_: weight_of(name)))
    for name, (inputs, outputs) in sizes.items():
        x = torch.randn(1, bench.shape.tokens, inputs, device=bench.torch_device).to(bench.torch_dtype)
        weight = weight_of(name).to(bench.torch_device, bench.torch_dtype)
        calls: dict[str, Callable[[], object]] = {
            name: _call(loaded[name], [[bench.upload(x)]]),
            "torch": partial(linear, x, weight),
        }
        gflop = 2e-9 * bench.shape.tokens * inputs * outputs
        yield from _rows(bench, {name: loaded[name]}, calls, dict.fromkeys(calls, gflop), {})


def _elementwise(bench: Bench) -> Iterator[Row]:
    """MAX's operations and the project's ops, with the bytes that have to move."""
    shape, size = bench.shape, 4 if bench.small else 2
    loaded = bench.once("elementwise", lambda: load(bench, "elementwise", random_numbers))
    x = (1, shape.tokens, shape.dim)
    heads = [(1, shape.tokens, count * shape.num_heads, shape.head_dim) for count in (2, 3)]
    rope = (1, shape.tokens, shape.head_dim // 2, 2)
    both = (1, shape.tokens, 2 * shape.ffn_dim)
    shapes = {"norms": (x, x, (2, shape.dim)), "gate": (both,)}
    moved = {"heads": 4 * shape.dim, "norms": 4 * shape.dim, "gate": 3 * shape.ffn_dim}
    for piece, numbers in moved.items():
        graphs = {name: graph for name, graph in loaded.items() if name.startswith(piece)}
        if not graphs:
            continue
        calls = {
            name: _call(graph, _random(bench, shapes.get(piece, (heads[name.endswith("plain")], rope))))
            for name, graph in graphs.items()
        }
        gbyte = 1e-9 * size * shape.tokens * numbers
        yield from _rows(bench, graphs, calls, {}, dict.fromkeys(calls, gbyte))


def _rows(
    bench: Bench,
    loaded: dict[str, Loaded],
    calls: dict[str, Callable[[], object]],
    gflop: dict[str, float],
    gbyte: dict[str, float],
) -> Iterator[Row]:
    case = next(iter(loaded.values())).variant.case
    for name, timing in bench.timed(calls).items():
        yield Row(
            case=case,
            variant=loaded[name].variant.title if name in loaded else name,
            dtype=bench.dtype,
            timing=timing,
            gflop=gflop.get(name),
            gbyte=gbyte.get(name),
        )


def _call(graph: Loaded, sets: Sequence[list[Buffer]]) -> Callable[[], Any]:
    """Calls that take sets of inputs in turn."""
    turn = itertools.cycle(sets)
    return lambda: graph(*next(turn))


def _random(bench: Bench, shapes: Sequence[Sequence[int]]) -> list[list[Buffer]]:
    """Sets of inputs: tokens in the model's dtype, tables of two or four dimensions that end small in float32."""
    sets = []
    for _ in range(_INPUTS):
        made = [torch.randn(tuple(shape), device=bench.torch_device) for shape in shapes]
        tables = [len(shape) == 2 or shape[-1] == 2 for shape in shapes]
        sets.append(
            [
                bench.upload(each if table else each.to(bench.torch_dtype))
                for each, table in zip(made, tables, strict=True)
            ]
        )
    return sets


def _whole(bench: Bench) -> Lengths:
    return Lengths((bench.shape.tokens,), bench.shape.tokens)
