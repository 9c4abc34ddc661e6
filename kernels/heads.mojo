"""Queries, keys and values of one head, taken from the fused product and packed for `products.tile_products`.

RMSNorm and RoPE of queries and keys happen on the way, in float32; they are rounded once. Element i of a head turns
with element i + head_dim/2.
"""

from std.collections import Array
from std.math import ceildiv
from std.memory import Pointer, bitcast

from .products import F32, LANES, TILE_COLUMNS, TILE_ROWS, U32, Lanes, inverse_root, per_unit

comptime KEYS = 8 * TILE_ROWS
"""Keys of a block: its scores and weights stay in the first-level cache."""


@always_inline
def prepared[
    dtype: DType, head_dim: Int, rotary: Bool
](
    numbers: Pointer[mut=_, Scalar[dtype], _],
    weight: Pointer[mut=_, Scalar[dtype], _],
    table: Pointer[mut=_, Float32, _],
    epsilon: Float32,
) -> Array[Lanes, head_dim // LANES]:
    """RMSNorm and RoPE of one head of one token, all in float32; without `rotary` the head as it is."""
    comptime VECTORS = head_dim // LANES
    comptime HALF = VECTORS // 2
    var x = Array[Lanes, VECTORS](fill=Lanes(0))
    var squares = Lanes(0)
    comptime for i in range(VECTORS):
        x[i] = numbers.unsafe_load[width=LANES](i * LANES).cast[F32]()
        squares = x[i].fma(x[i], squares)
    comptime if not rotary:
        return x^
    var scale = inverse_root(squares.reduce_add() / Float32(head_dim), epsilon)
    comptime for i in range(VECTORS):
        x[i] *= scale * weight.unsafe_load[width=LANES](i * LANES).cast[F32]()
    comptime for i in range(HALF):
        var cosine_sine = table.unsafe_load[width=2 * LANES](i * 2 * LANES).deinterleave()
        var cosine, sine = cosine_sine[0], cosine_sine[1]
        var first, second = x[i], x[i + HALF]
        x[i] = first * cosine - second * sine
        x[i + HALF] = second * cosine + first * sine
    return x^


@always_inline
def store_units[
    dtype: DType, head_dim: Int
](numbers: Array[Lanes, head_dim // LANES], place: Pointer[mut=True, UInt32, _], stride: Int):
    """Round once, and store a head's units `stride` apart."""
    comptime UNITS = LANES // per_unit[dtype]()
    comptime for i in range(head_dim // LANES):
        var units = bitcast[U32, UNITS](numbers[i].cast[dtype]())
        comptime for j in range(UNITS):
            place.unsafe_store((i * UNITS + j) * stride, units[j])


def pack_keys[
    dtype: DType, head_dim: Int, rotary: Bool
](
    source: Pointer[mut=_, Scalar[dtype], _],
    panels: Pointer[mut=True, UInt32, _],
    weight: Pointer[mut=_, Scalar[dtype], _],
    table: Pointer[mut=_, Float32, _],
    first: Int,
    length: Int,
    stride: Int,
    epsilon: Float32,
):
    """Fill a block's panels [8][units of a head][12]; keys that are not there are zero."""
    comptime UNITS = head_dim // per_unit[dtype]()
    for key in range(KEYS):
        var place = panels.unsafe_offset(key // TILE_ROWS * UNITS * TILE_ROWS + key % TILE_ROWS)
        var position = first + key
        if position >= length:
            for unit in range(UNITS):
                place.unsafe_store(unit * TILE_ROWS, UInt32(0))
            continue
        var turned = prepared[dtype, head_dim, rotary](
            source.unsafe_offset(position * stride), weight, table.unsafe_offset(position * head_dim), epsilon
        )
        store_units[dtype, head_dim](turned, place, TILE_ROWS)


def pack_values[
    dtype: DType, head_dim: Int
](
    source: Pointer[mut=_, Scalar[dtype], _],
    panels: Pointer[mut=True, UInt32, _],
    first: Int,
    length: Int,
    stride: Int,
    units: Int,
):
    """Fill a block's part of the panels [ceil(head_dim / 12)][units][12], with units along the keys.

    Values that are not there are zero.
    """
    comptime PANELS = ceildiv(head_dim, TILE_ROWS)
    comptime KEYS_OF_UNIT = per_unit[dtype]()
    var line = Array[UInt32, PANELS * TILE_ROWS](fill=UInt32(0))
    for unit in range(first // KEYS_OF_UNIT, (first + KEYS) // KEYS_OF_UNIT):
        comptime for i in range(head_dim // LANES):
            var numbers = Array[SIMD[dtype, LANES], KEYS_OF_UNIT](fill=SIMD[dtype, LANES](0))
            comptime for j in range(KEYS_OF_UNIT):
                var key = unit * KEYS_OF_UNIT + j
                if key < length:
                    numbers[j] = source.unsafe_load[width=LANES](key * stride + i * LANES)
            var together = bitcast[U32, LANES](joined[dtype](numbers))
            comptime for j in range(LANES):
                line[i * LANES + j] = together[j]
        for panel in range(PANELS):
            comptime for row in range(TILE_ROWS):
                panels.unsafe_store((panel * units + unit) * TILE_ROWS + row, line[panel * TILE_ROWS + row])


@always_inline
def joined[
    dtype: DType
](numbers: Array[SIMD[dtype, LANES], per_unit[dtype]()]) -> SIMD[dtype, LANES * per_unit[dtype]()]:
    """Numbers of one vector each to units."""
    comptime if per_unit[dtype]() == 1:
        return rebind[SIMD[dtype, LANES * per_unit[dtype]()]](numbers[0])
    else:
        return rebind[SIMD[dtype, LANES * per_unit[dtype]()]](numbers[0].interleave(numbers[1]))


def pack_queries[
    dtype: DType, head_dim: Int, rotary: Bool
](
    source: Pointer[mut=_, Scalar[dtype], _],
    panel: Pointer[mut=True, UInt32, _],
    weight: Pointer[mut=_, Scalar[dtype], _],
    table: Pointer[mut=_, Float32, _],
    first: Int,
    length: Int,
    stride: Int,
    epsilon: Float32,
):
    """Fill a panel [units of a head][32]; queries that are not there are zero."""
    for query in range(TILE_COLUMNS):
        var place = panel.unsafe_offset(query)
        if first + query >= length:
            for unit in range(head_dim // per_unit[dtype]()):
                place.unsafe_store(unit * TILE_COLUMNS, UInt32(0))
            continue
        var position = first + query
        var turned = prepared[dtype, head_dim, rotary](
            source.unsafe_offset(position * stride), weight, table.unsafe_offset(position * head_dim), epsilon
        )
        store_units[dtype, head_dim](turned, place, TILE_COLUMNS)
