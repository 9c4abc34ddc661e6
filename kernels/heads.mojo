"""Queries, keys and values of one head, taken from the fused product and packed for `products.tile_products`.

RMSNorm and RoPE of queries and keys happen on the way, in float32; they are rounded once. Element i of a head turns
with element i + head_dim/2.
"""

from std.collections import Array
from std.math import ceildiv, rsqrt
from std.memory import Pointer, bitcast

from .products import BF16, F32, LANES, TILE_COLUMNS, TILE_ROWS, Lanes

comptime U32 = DType.uint32
comptime KEYS = 8 * TILE_ROWS
"""Keys of a block: its scores and weights stay in the first-level cache."""


@always_inline
def prepared[
    head_dim: Int
](
    numbers: Pointer[mut=_, Scalar[BF16], _],
    weight: Pointer[mut=_, Scalar[BF16], _],
    table: Pointer[mut=_, Float32, _],
    epsilon: Float32,
) -> Array[SIMD[BF16, LANES], head_dim // LANES]:
    """RMSNorm and RoPE of one head of one token, all in float32, and rounded."""
    comptime VECTORS = head_dim // LANES
    comptime HALF = VECTORS // 2
    var x = Array[Lanes, VECTORS](fill=Lanes(0))
    var squares = Lanes(0)
    comptime for i in range(VECTORS):
        x[i] = numbers.unsafe_load[width=LANES](i * LANES).cast[F32]()
        squares = x[i].fma(x[i], squares)
    var scale = rsqrt(squares.reduce_add() / Float32(head_dim) + epsilon)
    comptime for i in range(VECTORS):
        x[i] *= scale * weight.unsafe_load[width=LANES](i * LANES).cast[F32]()
    var rotated = Array[SIMD[BF16, LANES], VECTORS](fill=SIMD[BF16, LANES](0))
    comptime for i in range(HALF):
        var cosine_sine = table.unsafe_load[width=2 * LANES](i * 2 * LANES).deinterleave()
        var cosine, sine = cosine_sine[0], cosine_sine[1]
        rotated[i] = (x[i] * cosine - x[i + HALF] * sine).cast[BF16]()
        rotated[i + HALF] = (x[i + HALF] * cosine + x[i] * sine).cast[BF16]()
    return rotated^


def pack_keys[
    head_dim: Int
](
    source: Pointer[mut=_, Scalar[BF16], _],
    panels: Pointer[mut=True, UInt32, _],
    weight: Pointer[mut=_, Scalar[BF16], _],
    table: Pointer[mut=_, Float32, _],
    first: Int,
    length: Int,
    stride: Int,
    epsilon: Float32,
):
    """Fill a block's panels [8][head_dim / 2][12]; keys that are not there are zero."""
    comptime PAIRS = head_dim // 2
    for key in range(KEYS):
        var place = panels.unsafe_offset(key // TILE_ROWS * PAIRS * TILE_ROWS + key % TILE_ROWS)
        var position = first + key
        if position >= length:
            for pair in range(PAIRS):
                place.unsafe_store(pair * TILE_ROWS, UInt32(0))
            continue
        var rotated = prepared[head_dim](
            source.unsafe_offset(position * stride), weight, table.unsafe_offset(position * head_dim), epsilon
        )
        comptime for i in range(head_dim // LANES):
            var pairs = bitcast[U32, LANES // 2](rotated[i])
            comptime for pair in range(LANES // 2):
                place.unsafe_store((i * LANES // 2 + pair) * TILE_ROWS, pairs[pair])


def pack_values[
    head_dim: Int
](
    source: Pointer[mut=_, Scalar[BF16], _],
    panels: Pointer[mut=True, UInt32, _],
    first: Int,
    length: Int,
    stride: Int,
    pairs: Int,
):
    """Fill a block's part of the panels [ceil(head_dim / 12)][pairs][12]; values that are not there are zero."""
    comptime PANELS = ceildiv(head_dim, TILE_ROWS)
    var line = Array[UInt32, PANELS * TILE_ROWS](fill=UInt32(0))
    for pair in range(first // 2, (first + KEYS) // 2):
        comptime for i in range(head_dim // LANES):
            var even, odd = SIMD[BF16, LANES](0), SIMD[BF16, LANES](0)
            if 2 * pair < length:
                even = source.unsafe_load[width=LANES](2 * pair * stride + i * LANES)
            if 2 * pair + 1 < length:
                odd = source.unsafe_load[width=LANES]((2 * pair + 1) * stride + i * LANES)
            var both = bitcast[U32, LANES](even.interleave(odd))
            comptime for j in range(LANES):
                line[i * LANES + j] = both[j]
        comptime for panel in range(PANELS):
            comptime for row in range(TILE_ROWS):
                panels.unsafe_store((panel * pairs + pair) * TILE_ROWS + row, line[panel * TILE_ROWS + row])


def pack_queries[
    head_dim: Int
](
    source: Pointer[mut=_, Scalar[BF16], _],
    panel: Pointer[mut=True, UInt32, _],
    weight: Pointer[mut=_, Scalar[BF16], _],
    table: Pointer[mut=_, Float32, _],
    first: Int,
    length: Int,
    stride: Int,
    epsilon: Float32,
):
    """Fill a panel [head_dim / 2][32]; queries that are not there are zero."""
    for query in range(TILE_COLUMNS):
        if first + query >= length:
            for pair in range(head_dim // 2):
                panel.unsafe_store(pair * TILE_COLUMNS + query, UInt32(0))
            continue
        var position = first + query
        var rotated = prepared[head_dim](
            source.unsafe_offset(position * stride), weight, table.unsafe_offset(position * head_dim), epsilon
        )
        comptime for i in range(head_dim // LANES):
            var pairs = bitcast[U32, LANES // 2](rotated[i])
            comptime for pair in range(LANES // 2):
                panel.unsafe_store((i * LANES // 2 + pair) * TILE_COLUMNS + query, pairs[pair])
