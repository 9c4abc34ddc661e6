"""Weights into the buffers that the graphs take, under the graphs' names: rounded once, stacked, reordered, packed.

Loading maps the files: a tensor that is used as it stands stays in the map, and any other is written once into its own
buffer while the pages it came from are given back, so that a component is never in memory twice. A matrix that is
packed, or rounded to codes, is read a few rows at a time by all cores, and is whole in no other order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from max_zimage.checkpoint.layout import deinterleave_pairs, packed, packed_rows, packs
from max_zimage.checkpoint.numbers import Bits, Read
from max_zimage.checkpoint.plan import LoadPlan, ParameterRecipe
from max_zimage.checkpoint.quantized import quantized, quantized_rows
from max_zimage.checkpoint.tensors import Files, StoredTensor, Tensor
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.linear import Codes


def load(
    checked: LoadPlan,
    dtype: ModelDtype,
    *,
    to_pack: bool = False,
    keep_filters: bool = False,
    only: Collection[str] | None = None,
) -> dict[str, Buffer]:
    """Load a component.

    Args:
        checked: Its plan.
        dtype: Of every parameter. Numbers are rounded to the nearest, ties to even.
        to_pack: Whether parameters that have a packing are packed, where their sizes allow it.
        keep_filters: Whether convolutions stay in the files' order, which is cuDNN's: [out, in, height, width].
        only: Engine names of the parameters that are loaded; None for all of them.

    Returns:
        Engine name -> buffer in host memory. A buffer that views a file keeps it mapped. A quantized matrix has its
        scales beside it, see `scales_of`.
    """
    files, made = Files(), dict[str, Buffer]()
    recipes = [_as_stored(each) if keep_filters and each.layout == "conv" else each for each in checked.recipes]
    wanted = [each for each in recipes if only is None or each.engine in only]
    with ThreadPoolExecutor(1) as disk:
        for each, following in zip_longest(wanted, wanted[1:]):
            if to_pack and following is not None:  # while this one is packed
                for part in following.parts:
                    disk.submit(part.ahead)
            codes = checked.codes(each)
            if codes is None:
                made[each.engine] = _made(each, files, checked.dtype_of(each, dtype), to_pack)
            else:
                made[each.engine], made[scales_of(each.engine)] = _quantized(each, codes, files)
    return made


def scales_of(engine: str) -> str:
    """What the graphs call the scales of a quantized parameter."""
    return f"{engine.removesuffix('.weight')}.scales"


def loaded_names(checked: LoadPlan) -> list[str]:
    """Engine names of all that loading a component gives."""
    return [
        name
        for each in checked.recipes
        for name in ([each.engine] if checked.codes(each) is None else [each.engine, scales_of(each.engine)])
    ]


def _quantized(recipe: ParameterRecipe, codes: Codes, files: Files) -> tuple[Buffer, Buffer]:
    assert recipe.packing is not None
    if _is_matrix_of_files(recipe):
        return quantized_rows(_reader(recipe, files, "float32"), recipe.shape, recipe.packing, codes)
    values = _stack(recipe.parts, files, "float32").view(np.float32).reshape(recipe.shape)
    deinterleave_pairs(values, recipe.rotary_heads, recipe.head_dim)
    return quantized(values, recipe.packing, codes)


def _as_stored(recipe: ParameterRecipe) -> ParameterRecipe:
    """The recipe of a convolution, without the turn."""
    return replace(recipe, layout="same", shape=recipe.parts[0].shape, packing=None)


def _made(recipe: ParameterRecipe, files: Files, dtype: ModelDtype, to_pack: bool) -> Buffer:
    packing = recipe.packing if to_pack and packs(recipe.packing, recipe.shape, DType[dtype]) else None
    if packing is not None and _is_matrix_of_files(recipe):
        return packed_rows(_reader(recipe, files, dtype), recipe.shape, packing, dtype)
    in_place = recipe.layout != "conv" and not recipe.rotary_heads and packing is None
    if in_place and len(recipe.parts) == 1 and (there := recipe.parts[0].in_place(dtype, files)) is not None:
        return there.view(DType[dtype], recipe.shape)
    values: Bits
    if recipe.layout == "conv":
        height, width, into, out = recipe.shape
        stacked = _stack(recipe.parts, files, dtype)
        values = np.empty(recipe.shape, stacked.dtype)
        values[:] = stacked.reshape(out, into, height, width).transpose(2, 3, 1, 0)
    else:
        values = _stack(recipe.parts, files, dtype)
        deinterleave_pairs(values.reshape(recipe.shape[0], -1), recipe.rotary_heads, recipe.head_dim)
    if packing:
        return packed(values.reshape(recipe.shape), packing)
    return Buffer.from_numpy(values.reshape(-1)).view(DType[dtype], recipe.shape)


def _is_matrix_of_files(recipe: ParameterRecipe) -> bool:
    """Whether its rows are read a few at a time as well as all at once; what is decoded first may take longer so."""
    stored = all(isinstance(part, StoredTensor) for part in recipe.parts)
    return stored and len(recipe.shape) == 2 and recipe.layout != "conv"


def _reader(recipe: ParameterRecipe, files: Files, dtype: ModelDtype) -> Read:
    """What reads a matrix from the files a few rows at a time, its pairs brought apart."""
    inputs, turned = recipe.shape[1], recipe.rotary_heads * recipe.head_dim
    for part in recipe.parts:
        _ = files[part.file]  # mapped once, before threads look for it

    def read(begin: int, end: int) -> Bits:
        # Pairs are apart in whole heads alone.
        first = begin // recipe.head_dim * recipe.head_dim if begin < turned else begin
        last = -(-end // recipe.head_dim) * recipe.head_dim if end < turned else end
        shape = (last - first, inputs)
        values: Bits = np.empty(shape, np.float32) if dtype == "float32" else np.empty(shape, np.uint16)
        start = 0
        for part in recipe.parts:
            above, below = max(first, start), min(last, start + part.size // inputs)
            if above < below and isinstance(part, StoredTensor):
                there = values[above - first : below - first].reshape(-1)
                part.fill_part((above - start) * inputs, there, files)
            start += part.size // inputs
        if first < turned:
            deinterleave_pairs(values, (min(last, turned) - first) // recipe.head_dim, recipe.head_dim)
        return values[begin - first : end - first]

    return read


def _stack(parts: Sequence[Tensor], files: Files, dtype: ModelDtype) -> Bits:
    """The parts' numbers one after another, rounded; bfloat16 as its bits."""
    count = sum(part.size for part in parts)
    values: Bits = np.empty(count, np.float32) if dtype == "float32" else np.empty(count, np.uint16)
    done = 0
    for part in parts:
        part.fill(values[done : done + part.size], files)
        done += part.size
    return values
