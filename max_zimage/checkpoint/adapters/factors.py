"""Low-rank adapters as they are, beside the matrices: for graphs that multiply each branch row by its own.

    down [rank, inputs], up [outputs, rank] · factor · scale     of every change of a matrix, stacked along the rank

Only LoRA changes of the matrices of the noise refiner and the main layers can be had this way; `why_not` says so of the
others, which are added to the weights. Rows of `up` are ordered and packed as those of the weights that they belong to.

Reference: `graphs.model.adapted`, which takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType

from max_zimage.checkpoint.adapters.adapter import Adapter
from max_zimage.checkpoint.adapters.changes import Change
from max_zimage.checkpoint.adapters.deltas import LowRank
from max_zimage.checkpoint.adapters.values import numbers
from max_zimage.checkpoint.expand import ParameterSource, transformer_names, weights
from max_zimage.checkpoint.layout import deinterleave_pairs, packed
from max_zimage.checkpoint.names import Packing
from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files
from max_zimage.device.dtypes import BYTES, ModelDtype, bfloat16_bits
from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.graphs.model.adapted import Factors
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.ops import PANEL
from max_zimage.host.sizes import sized

MATRICES = {
    "attention.qkv.weight": "qkv",
    "attention.out.weight": "out",
    "feed_forward.w13.weight": "w13",
    "feed_forward.w2.weight": "w2",
}
"""The graphs' names of a block's matrices, and what `Factors` call them."""

Bits = npt.NDArray[np.uint16] | FloatArray
Scaled = tuple[Adapter, float]
Pair = tuple[list[FloatArray], list[FloatArray]]
"""The parts of down, and those of up."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of the files stands in a matrix of a block.

    Attributes:
        block: Number of the block, those of the noise refiner first.
        matrix: As `MATRICES` has it.
        begin: Its first row there.
        source: The whole matrix.
    """

    block: int
    matrix: str
    begin: int
    source: ParameterSource

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the whole matrix."""
        return sum(part.shape[0] for part in self.source.parts), self.source.parts[0].shape[1]


def why_not(adapter: Adapter) -> str | None:
    """Why an adapter cannot stand beside the matrices, and is added to the weights; None if it can."""
    if others := [name for name, found in adapter.modules.items() if found and name != "transformer"]:
        return f"changes the {others[0].replace('_', ' ')}"
    places = _places(adapter.specs.transformer)
    for module, changes in adapter.modules.get("transformer", {}).items():
        for change in changes:
            if not isinstance(change.delta, LowRank) or change.magnitude is not None or change.replaces:
                return f"changes {module} by more than a low-rank product"
            if any(stretch.name not in places for stretch in change.target.stretches):
                return f"changes {module}, which is no matrix of the noise refiner or the main layers"
    return None


def factors_of(slots: Sequence[Sequence[Scaled]], spec: TransformerSpec, dtype: ModelDtype) -> Factors[Buffer]:
    """The low-rank parts of all matrices.

    Args:
        slots: Adapters and their scales, of each slot; none for the weights as they are. `why_not` has nothing against
            any of them.
        spec: The transformer's.
        dtype: Of the model.

    Returns:
        In host memory, packed; every matrix has the rank that its largest slot needs, rounded up to whole panels.

    Raises:
        AdapterError: If a file was changed after it was opened.
        NotEnoughMemoryError: If they do not fit.
    """
    found: dict[tuple[int, int, str], Pair] = {}
    for slot, adapters in enumerate(slots):
        for place, down, up in _pairs(adapters, spec):
            downs, ups = found.setdefault((slot, place.block, place.matrix), ([], []))
            downs.append(down)
            ups.append(up)
    shapes = {place.matrix: place.shape for place in _places(spec).values()}
    ranks = {matrix: _rank([pair for key, pair in found.items() if key[2] == matrix]) for matrix in shapes}
    _check_memory(sum(ranks[name] * sum(shape) for name, shape in shapes.items()) * len(slots), spec, dtype)
    made: dict[str, Buffer] = {}
    for matrix in MATRICES.values():
        own = {(slot, block): pair for (slot, block, name), pair in found.items() if name == matrix}
        (outputs, inputs), rank = shapes[matrix], ranks[matrix]
        packing: Packing = "gated" if matrix == "w13" else "panels"
        downs = _stacked(len(slots), spec.num_blocks, (rank, inputs), "panels", dtype)
        ups = _stacked(len(slots), spec.num_blocks, (outputs, rank), packing, dtype)
        for (slot, block), (down_parts, up_parts) in own.items():
            down, up = np.concatenate(down_parts), np.concatenate(up_parts, axis=1)
            missing = rank - len(down)
            downs[block, slot] = _packed(np.pad(down, ((0, missing), (0, 0))), "panels", dtype)
            ups[block, slot] = _packed(np.pad(up, ((0, 0), (0, missing))), packing, dtype)
        made[f"{matrix}_down"], made[f"{matrix}_up"] = _buffer(downs, dtype), _buffer(ups, dtype)
    return Factors(**made)


def _rank(pairs: Sequence[Pair]) -> int:
    """The rank of a matrix: that of the largest, in whole panels, at least one."""
    most = max((sum(map(len, downs)) for downs, _ in pairs), default=1)
    return -(-most // PANEL) * PANEL


def _check_memory(numbers_of_block: int, spec: TransformerSpec, dtype: ModelDtype) -> None:
    needed, available = numbers_of_block * spec.num_blocks * BYTES[dtype], available_memory()
    if needed > available:
        raise NotEnoughMemoryError(
            f"adapters beside the weights need {sized(needed)}, {sized(available)} are available; draw fewer sets of "
            "adapters together, or free memory"
        )


def _pairs(adapters: Sequence[Scaled], spec: TransformerSpec) -> Iterator[tuple[Place, FloatArray, FloatArray]]:
    places, files = _places(spec), Files()
    for adapter, scale in adapters:
        adapter.check_unchanged()
        for changes in adapter.modules.get("transformer", {}).values():
            for change in changes:
                if not change.is_nothing:
                    yield _pair(change, scale, places, files)


def _pair(
    change: Change, scale: float, places: Mapping[str, Place], files: Files
) -> tuple[Place, FloatArray, FloatArray]:
    """A change's matrix, down [rank, inputs], and up [outputs of the whole matrix, rank] times factor and scale."""
    assert isinstance(change.delta, LowRank)
    down, up = numbers(change.delta.down, files), numbers(change.delta.up, files)
    up = up * np.float32(change.delta.factor * scale)
    place = places[change.target.stretches[0].name]
    whole = np.zeros((place.shape[0], len(down)), np.float32)
    for stretch in change.target.stretches:
        begin = places[stretch.name].begin
        whole[begin : begin + stretch.end - stretch.begin] = up[stretch.begin : stretch.end]
    if place.source.rotary_heads:
        deinterleave_pairs(whole, place.source.rotary_heads, place.source.head_dim)
    return place, down, whole


@lru_cache(maxsize=4)
def _places(spec: TransformerSpec) -> Mapping[str, Place]:
    """Tensors of the files, by name -> where they stand."""
    found: dict[str, Place] = {}
    starts = {"noise_refiner": 0, "layers": spec.num_refiner_layers}
    for source in weights(transformer_names(spec), "diffusers", ""):
        room, _, rest = source.engine.partition(".")
        number, _, name = rest.partition(".")
        if room not in starts or name not in MATRICES:
            continue
        begin = 0
        for part in source.parts:
            found[part.name] = Place(starts[room] + int(number), MATRICES[name], begin, source)
            begin += part.shape[0]
    return found


def _packed(values: FloatArray, packing: Packing, dtype: ModelDtype) -> Bits:
    if dtype == "float32":
        return packed(values, packing).to_numpy()
    bits = packed(bfloat16_bits(values), packing)
    return bits.view(DType.uint16, tuple(map(int, bits.shape))).to_numpy()


def _stacked(slots: int, blocks: int, shape: tuple[int, int], packing: Packing, dtype: ModelDtype) -> Bits:
    """Zeros of all blocks and slots."""
    one = _packed(np.zeros(shape, np.float32), packing, dtype)
    return np.zeros((blocks, slots, *one.shape), one.dtype)


def _buffer(values: Bits, dtype: ModelDtype) -> Buffer:
    buffer = Buffer.from_numpy(values.reshape(-1))
    return buffer.view(DType[dtype], values.shape)
