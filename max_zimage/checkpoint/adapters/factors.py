"""Low-rank adapters as they are, beside the matrices: for graphs that multiply each branch row by its own.

    down [rank, inputs], up [outputs, rank] · factor · scale     of every change of a matrix, stacked along the rank

Only LoRA changes of the matrices of the noise refiner and the main layers can be had this way; `why_not` says so of the
others, which are added to the weights. Rows of `up` are ordered and packed as those of the weights that they belong to.

Reference: `graphs.model.adapted`, which takes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from max.driver import Buffer

from max_zimage.checkpoint.adapters.adapter import Adapter
from max_zimage.checkpoint.adapters.changes import Change
from max_zimage.checkpoint.adapters.deltas import LowRank
from max_zimage.checkpoint.adapters.places import MATRICES, Place, matrix_places
from max_zimage.checkpoint.adapters.values import numbers
from max_zimage.checkpoint.layout import deinterleave_pairs, packed
from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files
from max_zimage.device.dtypes import BYTES, ModelDtype, bfloat16_bits
from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.errors import AdapterError
from max_zimage.graphs.model.adapted import Factors
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.ops import PANEL
from max_zimage.host.sizes import sized

Scaled = tuple[Adapter, float]


def why_not(adapters: Sequence[Adapter]) -> str | None:
    """Why the adapters of a picture cannot stand beside the matrices, and are added to the weights; None if they can.

    Args:
        adapters: All of them: their ranks add up.

    Returns:
        Begins with the adapter's name.
    """
    ranks: dict[tuple[int, str], int] = {}
    for adapter in adapters:
        if others := [each for each, found in adapter.modules.items() if found and each != "transformer"]:
            return f"{adapter.path.name} changes the {others[0].replace('_', ' ')}"
    for adapter, change in _changes(adapters):
        what, places = f"{adapter.path.name} changes {change.module}", matrix_places(adapter.specs.transformer)
        if not isinstance(change.delta, LowRank) or change.magnitude is not None or change.replaces:
            return f"{what} by more than a low-rank product"
        if any(stretch.name not in places for stretch in change.target.stretches):
            return f"{what}, which is no matrix of the noise refiner or the main layers"
        place = places[change.target.stretches[0].name]
        rank = ranks.get(place.where, 0) + change.delta.down.shape[0]
        if rank > place.most:
            return f"{what}, whose rank comes to {rank}, where {place.most} is the most"
        ranks[place.where] = rank
    return None


def factors_of(sets: Sequence[Sequence[Scaled]], spec: TransformerSpec, dtype: ModelDtype) -> Factors[Buffer]:
    """The low-rank parts of all matrices.

    Args:
        sets: Adapters and their scales, at least one set; `why_not` has nothing against any of them.
        spec: The transformer's.
        dtype: Of the model.

    Returns:
        In host memory, packed; every matrix has the rank that its largest set needs, rounded up to whole panels.

    Raises:
        AdapterError: If a file was changed after it was opened, or numbers come out infinite.
        NotEnoughMemoryError: If they do not fit.
    """
    shapes = {place.matrix: place.shape for place in matrix_places(spec).values()}
    ranks, count = _ranks(sets, spec), len(sets) * spec.num_blocks
    _check_memory(count * sum(ranks[matrix] * sum(shape) for matrix, shape in shapes.items()), dtype)
    downs = {matrix: np.zeros((count, ranks[matrix], inputs), np.float32) for matrix, (_, inputs) in shapes.items()}
    ups = {matrix: np.zeros((count, outputs, ranks[matrix]), np.float32) for matrix, (outputs, _) in shapes.items()}
    for index, adapters in enumerate(sets):
        filled: dict[tuple[int, str], int] = {}
        for place, down, up in _pairs(adapters, spec):
            at, begin = index * spec.num_blocks + place.block, filled.get(place.where, 0)
            end = filled[place.where] = begin + len(down)
            downs[place.matrix][at, begin:end] = down
            ups[place.matrix][at, :, begin:end] = up
    made: dict[str, Buffer] = {}
    for matrix in shapes:
        made[f"{matrix}_down"] = _packed(downs.pop(matrix), dtype)
        made[f"{matrix}_up"] = _packed(ups.pop(matrix), dtype, gated=matrix == "w13")
    return Factors(**made)


def _changes(adapters: Iterable[Adapter]) -> Iterator[tuple[Adapter, Change]]:
    """What adapters change of the transformer, but for what an alpha of 0 leaves as it is."""
    for adapter in adapters:
        for changes in adapter.modules.get("transformer", {}).values():
            yield from ((adapter, change) for change in changes if not change.is_nothing)


def _ranks(sets: Sequence[Sequence[Scaled]], spec: TransformerSpec) -> dict[str, int]:
    """The rank of each matrix: that of the largest of all blocks and sets, in whole panels, at least one."""
    places = matrix_places(spec)
    most = dict.fromkeys(MATRICES.values(), 1)
    for adapters in sets:
        ranks: dict[tuple[int, str], int] = {}
        for _, change in _changes(adapter for adapter, _ in adapters):
            place = places[change.target.stretches[0].name]
            ranks[place.where] = ranks.get(place.where, 0) + _low_rank(change).down.shape[0]
            most[place.matrix] = max(most[place.matrix], ranks[place.where])
    return {matrix: -(-rank // PANEL) * PANEL for matrix, rank in most.items()}


def _check_memory(count: int, dtype: ModelDtype) -> None:
    """While they are packed, numbers are there in float32 too."""
    needed, available = count * (BYTES["float32"] + BYTES[dtype]), available_memory()
    if needed > available:
        raise NotEnoughMemoryError(
            f"adapters beside the weights need {sized(needed)}, {sized(available)} are available; draw fewer sets of "
            "adapters together, or free memory"
        )


def _pairs(adapters: Sequence[Scaled], spec: TransformerSpec) -> Iterator[tuple[Place, FloatArray, FloatArray]]:
    places, files = matrix_places(spec), Files()
    for adapter, scale in adapters:
        adapter.check_unchanged()
        for _, change in _changes([adapter]):
            place, down, up = _pair(change, scale, places, files)
            if not np.isfinite(up).all():
                raise AdapterError(f"{adapter.path}: {change.module} is infinite at a scale of {scale:g}")
            yield place, down, up


def _low_rank(change: Change) -> LowRank:
    assert isinstance(change.delta, LowRank)  # see `why_not`
    return change.delta


def _pair(
    change: Change, scale: float, places: Mapping[str, Place], files: Files
) -> tuple[Place, FloatArray, FloatArray]:
    """A change's matrix, down [rank, inputs], and up [outputs of the whole matrix, rank] times factor and scale."""
    delta = _low_rank(change)
    down, up = numbers(delta.down, files), numbers(delta.up, files)
    with np.errstate(over="ignore"):  # what comes of it is looked at
        up = up * np.float32(delta.factor * scale)
    place = places[change.target.stretches[0].name]
    whole = np.zeros((place.shape[0], len(down)), np.float32)
    for stretch in change.target.stretches:
        begin = places[stretch.name].begin
        whole[begin : begin + stretch.end - stretch.begin] = up[stretch.begin : stretch.end]
    if place.source.rotary_heads:
        deinterleave_pairs(whole, place.source.rotary_heads, place.source.head_dim)
    return place, down, whole


def _packed(values: FloatArray, dtype: ModelDtype, *, gated: bool = False) -> Buffer:
    """Matrices [count, outputs, inputs] as `graphs.adapted_ops.adapted_linear` takes them."""
    return packed(values if dtype == "float32" else bfloat16_bits(values), "gated" if gated else "panels")
