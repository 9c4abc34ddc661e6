"""What a step costs that a step cache leaves out: the real model's widths at 1024x1024, on this CPU.

All blocks share the weights of one, so that many layers take the memory of one; the work is the same. Few layers are
run, since a step in full takes minutes; that of the whole depth is extrapolated by the number of operations. Of the two
blocks that can decide the dearer one is only counted here: `layers` asks both refiner blocks and a main layer, 9.3 % of
the operations.
"""

from __future__ import annotations

import functools
import gc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.graph import DeviceRef, TensorType

from benchmarks.compiling import CompiledModule, compiled
from benchmarks.measure import Row, Timing, seconds_of
from max_zimage.compile import work
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.device.devices import upload
from max_zimage.graphs.dims import FirstBlock
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.compose import denoise_step, extrapolated_step
from max_zimage.graphs.step.extrapolate import ExtrapolateInputs, TaylorUpdate
from max_zimage.graphs.step.first_block import FirstBlockStep
from max_zimage.pipeline.items import one_row
from max_zimage.pipeline.step_inputs import euler_step_inputs
from max_zimage.sampling.positions import padded

_CPU = DeviceRef.CPU()
_SIZE = 4  # bytes of a float32 number


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A transformer, what it works on, and the main layers of the model that it stands for."""

    spec: TransformerSpec
    image_tokens: int
    caption_tokens: int
    blocks: tuple[FirstBlock, ...]
    depth: int

    @property
    def tokens(self) -> int:
        """Image and caption, each with its padding."""
        return padded(self.image_tokens) + padded(self.caption_tokens)

    @property
    def sizes(self) -> str:
        """In words."""
        spec = self.spec
        return f"dim {spec.dim}, {spec.num_refiner_layers} + {spec.num_layers} layers, {self.tokens} tokens"


FULL = Shape(
    spec=replace(FULL_MODEL.transformer, num_layers=6),
    image_tokens=4096,
    caption_tokens=64,
    blocks=("noise_refiner",),
    depth=FULL_MODEL.transformer.num_layers,
)
QUICK = Shape(
    spec=replace(FULL_MODEL.transformer, dim=256, num_heads=2, num_layers=3, num_refiner_layers=1),
    image_tokens=64,
    caption_tokens=32,
    blocks=("noise_refiner", "layers"),
    depth=3,
)


def rows(shape: Shape, repeats: int, roofs: dict[str, float]) -> list[Row]:
    """Time a step in full, and every way of leaving one out."""
    spec, weights, given = shape.spec, _weights(shape.spec), _Given(shape)
    measured = [_row(shape, "in full", _plain(spec, weights), given.plain, work.denoise, 2, roofs)]
    for first in shape.blocks:
        counted = functools.partial(work.first_block, first=first)
        graph, arguments = _first_block(spec, first, weights), given.first_block(first)
        measured.append(_row(shape, f"left out by first_block, {first}", graph, arguments, counted, repeats, roofs))
        del graph
        gc.collect()
    step = compiled(lambda: extrapolated_step(spec), "float32", _types(lambda: extrapolated_step(spec)), {})
    measured.append(_row(shape, "left out by taylorseer", step, given.taylor_step, None, repeats, roofs))
    update = compiled(lambda: TaylorUpdate(spec), "float32", _types(lambda: TaylorUpdate(spec)), {})
    name = "what taylorseer adds to a computed step"
    measured.append(_row(shape, name, update, given.taylor_update, None, repeats, roofs))
    return [replace(row, note=_share(shape, row, measured[0])) for row in measured]


def _plain(spec: TransformerSpec, weights: Mapping[str, Buffer]) -> CompiledModule:
    return compiled(lambda: denoise_step(spec), "float32", _types(lambda: denoise_step(spec)), weights)


def _first_block(spec: TransformerSpec, first: FirstBlock, weights: Mapping[str, Buffer]) -> CompiledModule:
    own = {name.removeprefix("predict."): data for name, data in weights.items()}
    return compiled(lambda: FirstBlockStep(spec, first), "float32", _types(lambda: FirstBlockStep(spec, first)), own)


def _types(make: Callable[[], Any]) -> Sequence[TensorType]:
    return tuple(build(make, DType.float32, _CPU).input_types(DType.float32, _CPU))


def _row(
    shape: Shape,
    name: str,
    graph: CompiledModule,
    arguments: Sequence[Buffer],
    count: Callable[..., work.Work] | None,
    repeats: int,
    roofs: dict[str, float],
) -> Row:
    if repeats > 2:  # a step in full is not run once more for nothing
        graph(*arguments)
    seconds = [seconds_of(lambda: graph(*arguments)) for _ in range(repeats)]
    sizes = {"image_tokens": shape.image_tokens, "image_padded": padded(shape.image_tokens), "tokens": shape.tokens}
    flops = None if count is None else count(spec=shape.spec, items=1, size=_SIZE, **sizes).flops
    return Row(
        case="a step",
        variant=name,
        dtype="float32",
        sizes=shape.sizes,
        timing=Timing.of(seconds),
        compile_seconds=graph.seconds,
        gflop=None if flops is None else flops / 1e9,
        roof=roofs.get("float32"),
        reference=name == "in full",
    )


def _share(shape: Shape, row: Row, whole: Row) -> str:
    """How much of a step of the whole depth a row is, by operations and by time."""
    if row is whole or row.timing is None or whole.timing is None or whole.gflop is None:
        return ""
    deep = work.denoise(
        replace(shape.spec, num_layers=shape.depth),
        items=1,
        image_tokens=shape.image_tokens,
        image_padded=padded(shape.image_tokens),
        tokens=shape.tokens,
        size=_SIZE,
    )
    gflop = deep.flops / 1e9
    operations = "" if row.gflop is None else f"{row.gflop / gflop:.2%} of the operations, "
    seconds = whole.timing.median * gflop / whole.gflop
    depth = f"{shape.spec.num_refiner_layers} + {shape.depth} layers"
    return (
        f"{operations}{row.timing.median / seconds:.2%} of the time of a step in full of {depth}, about {seconds:.3g} s"
    )


class _Given:
    """Random arguments of every graph, on the host."""

    def __init__(self, shape: Shape) -> None:
        self._random, self._shape = np.random.default_rng(0), shape
        spec, image = shape.spec, padded(shape.image_tokens)
        latents = self._numbers(1, shape.image_tokens, spec.patch_dim)
        captions = self._numbers(1, padded(shape.caption_tokens), spec.dim)
        rope = self._numbers(1, shape.tokens, spec.head_dim // 2, 2)
        items = one_row(self._numbers(1, image, spec.head_dim // 2, 2), rope, shape.tokens)
        gates = (self._numbers(spec.num_blocks, 4, 1, spec.dim, scale=0.1), self._numbers(spec.dim))
        step = euler_step_inputs(items, captions, latents, *gates, delta=0.0)
        self.plain = step.arguments
        # So high a threshold is never reached: the other blocks are left out.
        self._asked = (*step.predict, upload(np.full(1, 1e30, np.float32), CPU()))
        taken = ExtrapolateInputs(*(latents,) * 4, upload(np.ones(2, np.float32), CPU()))
        self.taylor_step = (*taken, *step.branches, *step.guide, *step.advance)
        self.taylor_update = (*(latents,) * 3, upload(np.ones(1, np.float32), CPU()))

    def first_block(self, first: FirstBlock) -> tuple[Buffer, ...]:
        """Arguments of `FirstBlockStep` with a state that is not zero."""
        shape = self._shape
        length = padded(shape.image_tokens) if first == "noise_refiner" else shape.tokens
        state = (self._numbers(1, length, shape.spec.dim), self._numbers(1, shape.image_tokens, shape.spec.dim))
        return (*self._asked, *state)

    def _numbers(self, *shape: int, scale: float = 1.0) -> Buffer:
        return upload(self._random.standard_normal(shape, np.float32) * np.float32(scale), CPU())


def _weights(spec: TransformerSpec) -> dict[str, Buffer]:
    """Random weights of the transformer; what has the same name in two blocks is the same memory."""
    module = build(lambda: denoise_step(spec), DType.float32, _CPU)
    random, shared, weights = np.random.default_rng(1), {}, {}
    for name, parameter in module.parameters:
        kind = re.sub(r"(noise_refiner|layers)\.\d+", "block", name)
        if kind not in shared:
            shape = tuple(map(int, parameter.shape))
            values = random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))
            shared[kind] = upload(values, CPU())
        weights[name] = shared[kind]
    return weights
