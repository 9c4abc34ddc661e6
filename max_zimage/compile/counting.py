"""Counting the work of a call of each graph from the shapes of its inputs; see `max_zimage.compile.work`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from max_zimage.compile import work
from max_zimage.compile.work import Work
from max_zimage.graphs.model.adapted import Factors
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.model.vae import VaeSpec
from max_zimage.graphs.ops import PANEL
from max_zimage.graphs.step.inputs import PredictInputs

Shapes = Sequence[tuple[int, ...]]
"""Of the inputs of a call."""


@dataclass(frozen=True, kw_only=True)
class Counter:
    """What the work of a model's graphs is counted from, beside the shapes that they are called with.

    Attributes:
        text_encoder: Its shape.
        layers: How many of its layers run.
        transformer: Its shape.
        vae: Its shape.
        size: Bytes of a number in the model's dtype.
        picture_size: See `decode`.
    """

    text_encoder: TextEncoderSpec
    layers: int
    transformer: TransformerSpec
    vae: VaeSpec
    size: int
    picture_size: int


def not_counted(counter: Counter, shapes: Shapes) -> None:
    """For graphs whose work depends on numbers that they compute, or is not worth counting."""


def count_text_encoder(counter: Counter, shapes: Shapes) -> Work:
    """Token ids come first, [prompts, length]."""
    (prompts, length), spec = shapes[0], counter.text_encoder
    return work.text_encoder(spec, layers=counter.layers, prompts=prompts, length=length, size=counter.size)


def count_encoder_layer(counter: Counter, shapes: Shapes) -> Work:
    """The state below comes first, [prompts, length, hidden_size]."""
    prompts, length, _ = shapes[0]
    return work.text_encoder(counter.text_encoder, layers=1, prompts=prompts, length=length, size=counter.size)


def count_conditioning(counter: Counter, shapes: Shapes) -> Work:
    """Features come first, [prompts, length, caption_dim]."""
    prompts, length, _ = shapes[0]
    return work.conditioning(counter.transformer, prompts=prompts, length=length, size=counter.size)


def count_modulation(counter: Counter, shapes: Shapes) -> Work:
    """Timesteps come first, [steps]."""
    return work.modulation(counter.transformer, steps=shapes[0][0], size=counter.size)


def count_denoise(counter: Counter, shapes: Shapes, *, is_paired: bool = False) -> Work:
    """Inputs of the transformer come first, by their names."""
    given = PredictInputs(*shapes[: len(PredictInputs._fields)])
    return work.denoise(
        counter.transformer,
        items=given.rope[0],
        image_tokens=given.latents[1],
        image_padded=given.image_rope[1],
        tokens=given.rope[1],
        size=counter.size,
        is_paired=is_paired,
    )


def count_adapted(counter: Counter, shapes: Shapes) -> Work:
    """Inputs of the transformer come first, where a picture's parts stand behind them, then those parts."""
    count, spec = len(PredictInputs._fields), counter.transformer
    given, factors = PredictInputs(*shapes[:count]), Factors(*shapes[count + 1 : count + 1 + len(Factors._fields)])
    rows = given.rope[0] * (given.image_rope[1] * spec.num_refiner_layers + given.rope[1] * spec.num_layers)
    products = (
        (factors.qkv_down, spec.dim, 3 * spec.dim),
        (factors.out_down, spec.dim, spec.dim),
        (factors.w13_down, spec.dim, 2 * spec.ffn_dim),
        (factors.w2_down, spec.ffn_dim, spec.dim),
    )
    total = count_denoise(counter, shapes)
    for (_, panels, *_), inner, outer in products:
        rank = PANEL * panels
        total += work.linear(rows, inner, rank, counter.size) + work.linear(rows, rank, outer, counter.size)
    return total


def count_streamed_start(counter: Counter, shapes: Shapes) -> Work:
    """Inputs of the transformer come first, by their names."""
    given, spec = PredictInputs(*shapes), counter.transformer
    (items, padded), image_tokens = given.image_rope[:2], given.latents[1]
    embedded = work.linear(items * image_tokens, spec.patch_dim, spec.dim, counter.size)
    return embedded + work.block(spec, items, padded, counter.size) * spec.num_refiner_layers


def count_streamed_block(counter: Counter, shapes: Shapes) -> Work:
    """Tokens come first, [items, tokens, dim]."""
    items, tokens, _ = shapes[0]
    return work.block(counter.transformer, items, tokens, counter.size)


def count_streamed_end(counter: Counter, shapes: Shapes) -> Work:
    """Latents come first, [batch, image_tokens, patch_dim], then tokens, [items, tokens, dim]."""
    spec, image_tokens, items = counter.transformer, shapes[0][1], shapes[1][0]
    return work.linear(items * image_tokens, spec.dim, spec.patch_dim, counter.size)


def count_decode(counter: Counter, shapes: Shapes) -> Work:
    """Latents come first, [pictures, rows, columns, 2, 2, channels]."""
    pictures, rows, columns = shapes[0][:3]
    sizes = {"size": counter.size, "picture_size": counter.picture_size}
    return work.decode(counter.vae, pictures=pictures, rows=2 * rows, columns=2 * columns, **sizes)


def count_decode_tile(counter: Counter, shapes: Shapes) -> Work:
    """Latents come first, [pictures, rows, columns, channels]."""
    pictures, rows, columns, _ = shapes[0]
    sizes = {"size": counter.size, "picture_size": counter.picture_size}
    return work.decode(counter.vae, pictures=pictures, rows=rows, columns=columns, **sizes)


def count_pack(counter: Counter, shapes: Shapes) -> Work:
    """Latents are read and written."""
    return work.elementwise(_count(shapes[0]), passes=2)


def count_scheduler_step(counter: Counter, shapes: Shapes) -> Work:
    """Latents and prediction are read, latents written."""
    return work.elementwise(_count(shapes[0]), passes=3)


def count_elementwise(counter: Counter, shapes: Shapes) -> Work:
    """All that comes in is read, and latents, which come first, are written."""
    return work.elementwise(sum(map(_count, shapes)) + _count(shapes[0]), passes=1)


def count_positions(counter: Counter, shapes: Shapes) -> Work:
    """Ids of image and caption tokens come last; for each a row of every table is read and written, of images twice."""
    width, (image, caption) = sum(_count(table[1:]) for table in shapes[:3]), (_count(ids[:-1]) for ids in shapes[3:])
    return work.elementwise(image * (3 + 3 * width) + caption * (3 + 2 * width), passes=1)


def count_taylor_update(counter: Counter, shapes: Shapes) -> Work:
    """All that comes in is read, and two differences are written."""
    return work.elementwise(sum(map(_count, shapes)) + 2 * _count(shapes[0]), passes=1)


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
