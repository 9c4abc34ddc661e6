"""Right or wrong: own ops, attention and the whole block against float64, on random numbers at awkward lengths.

What is allowed is twice the error of PyTorch in the same dtype. Memory that results get is filled with not-a-number
before, so that what is not written is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_run import cases
from benchmarks.gpu_run.bench import Bench, poison
from benchmarks.gpu_run.cases import FLOOR, BlockCase, Lengths
from benchmarks.gpu_run.loading import load, random_numbers
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.gpu_run.variants import WIDE, op_widths


def parts(bench: Bench) -> list[Part]:
    """The ops, attention and the block, each at every length."""
    named = (("own ops", _own_ops), ("attention", _attention), ("block", _block))
    listed = [
        Part(name=f"{name}, {sizes}", seconds=5, measure=partial(each, bench, sizes))
        for name, each in named
        for sizes in cases.lengths(bench)
    ]
    return [*listed, Part(name="ops for pictures", seconds=8, measure=lambda: _picture_ops(bench))]


def _own_ops(bench: Bench, sizes: Lengths) -> Iterator[Row]:
    """Every op for a GPU, in bfloat16 whatever the model's dtype is."""
    from tests.references import gpu_ops

    loaded = bench.once("own_ops", lambda: load(bench, "own_ops", random_numbers))["all_ops"]
    widths, items = op_widths(bench.shape), len(sizes.valid)
    given = gpu_ops.inputs(widths, items, sizes.padded, tables=items)
    there = [each.to(bench.torch_device) for each in given]
    with bench.torch_device:
        exact, plain = (gpu_ops.expected(widths, there, dtype) for dtype in (torch.float64, torch.bfloat16))
    buffers = [bench.upload(each) for each in given]
    poison(bench, [each.shape for each in exact], torch.bfloat16)
    outputs = [bench.download(each) for each in loaded(*buffers)]
    everything = (sizes.padded,) * items
    for name, ours, right, torchs in zip(gpu_ops.NAMES, outputs, exact, plain, strict=True):
        relative, largest = cases.error_in(ours, right, everything)
        yield _row(name, "own op", "bfloat16", sizes, relative, largest, cases.error_in(torchs, right, everything)[0])


def _picture_ops(bench: Bench) -> Iterator[Row]:
    """Two items of an odd size, and attention over more positions than one launch takes."""
    from tests.references import gpu_pictures

    loaded = bench.once("picture_ops", lambda: load(bench, "picture_ops", random_numbers))
    items, rows, columns, positions = (2, 9, 11, 100) if bench.small else (2, 96, 90, 2060)
    for index, (name, (channels, groups)) in enumerate(gpu_pictures.NORMS.items()):
        given = gpu_pictures.picture(name, items, rows, columns)
        exact, plain = (gpu_pictures.normed(name, given, dtype) for dtype in (torch.float64, torch.bfloat16))
        poison(bench, [each.shape for each in exact], torch.bfloat16)
        outputs = [bench.download(each).cpu() for each in loaded[f"norm_{index}"](*map(bench.upload, given))]
        sizes = f"{items} x {rows} x {columns} x {channels}, {groups} groups"
        for what, ours, right, torchs in zip(("group norm", "with SiLU"), outputs, exact, plain, strict=True):
            (relative, largest), (theirs, _) = (cases.error_in(each, right, [rows] * items) for each in (ours, torchs))
            yield _row(what, "own op", "bfloat16", sizes, relative, largest, theirs)
    given = gpu_pictures.heads(items, positions, WIDE)
    exact_mix, plain_mix = (gpu_pictures.attended(given, dtype) for dtype in (torch.float64, torch.bfloat16))
    poison(bench, [exact_mix.shape], torch.bfloat16)
    ours = bench.download(loaded["wide"](*map(bench.upload, given))[0]).cpu()
    (relative, largest), (theirs, _) = (
        cases.error_in(each, exact_mix, [positions] * items) for each in (ours, plain_mix)
    )
    yield _row("wide attention", "own op", "bfloat16", f"{items} x {positions} x {WIDE}", relative, largest, theirs)


def _attention(bench: Bench, sizes: Lengths) -> Iterator[Row]:
    """Every kernel; the one without a valid length only where all tokens exist."""
    loaded = bench.once("attentions", lambda: load(bench, "attentions", random_numbers))
    shape, items = bench.shape, len(sizes.valid)
    generator = torch.Generator(bench.torch_device).manual_seed(sizes.padded)
    heads = [
        torch.randn(
            items, sizes.padded, shape.num_heads, shape.head_dim, generator=generator, device=bench.torch_device
        )
        for _ in range(3)
    ]
    query, key, value = (each.to(bench.torch_dtype) for each in heads)
    exact = cases.attention_by_torch(query, key, value, sizes.valid, torch.float64)
    plain = cases.attention_by_torch(query, key, value, sizes.valid, bench.torch_dtype)
    theirs = cases.error_in(plain, exact, sizes.valid)[0]
    more = {"padded": [bench.integers(sizes.valid)], "ragged": [bench.integers(sizes.offsets)], "whole": []}
    for name, graph in loaded.items():
        if name == "whole" and set(sizes.valid) != {sizes.padded}:
            continue
        buffers = [*(bench.upload(each) for each in (query, key, value)), *more[name]]
        poison(bench, [query.shape], bench.torch_dtype)
        relative, largest = cases.error_in(bench.download(graph(*buffers)[0]), exact, sizes.valid)
        yield _row("attention", graph.variant.title, bench.dtype, sizes, relative, largest, theirs)


def _block(bench: Bench, sizes: Lengths) -> Iterator[Row]:
    """Every variant; the one without a valid length only where all tokens exist."""
    block = bench.once("block", lambda: cases.block(bench))
    loaded = bench.once("blocks", lambda: load_blocks(bench))
    case = BlockCase(bench, block, sizes)
    exact = case.by_torch(block.double(), torch.float64)
    theirs = case.error(case.by_torch(block.to(bench.torch_dtype), bench.torch_dtype), exact)[0]
    block.float()
    for name, graph in loaded.items():
        if name == "whole" and set(sizes.valid) != {sizes.padded}:
            continue
        buffers = case.arguments(name)
        poison(bench, [case.x.shape], bench.torch_dtype)
        relative, largest = case.error(bench.download(graph(*buffers)[0]), exact)
        yield _row("block", graph.variant.title, bench.dtype, sizes, relative, largest, theirs)


def load_blocks(bench: Bench):
    """The set "blocks" with the weights of `cases.block`."""
    weights = cases.weights(bench.once("block", lambda: cases.block(bench)))
    return load(bench, "blocks", lambda graph, name, shape: weights[name])


def _row(
    case: str, variant: str, dtype: str, sizes: Lengths | str, relative: float, largest: float, theirs: float
) -> Row:
    return Row(
        case=f"{case} against float64",
        variant=variant,
        dtype=dtype,
        sizes=str(sizes),
        relative_l2=relative,
        max_abs=largest,
        allowed=2 * theirs + FLOOR,
        note=f"PyTorch in {dtype}: {theirs:.3g}",
    )
