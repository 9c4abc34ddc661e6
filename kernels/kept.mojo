"""New keys and values, packed behind those that were kept for `products.tile_products`, and the mask over them all."""

from std.collections import Array
from std.math import ceildiv
from std.memory import Pointer, bitcast

from .attention import MASKED
from .heads import KEYS, joined, prepared, store_units
from .products import F32, LANES, TILE_COLUMNS, TILE_ROWS, U32, Lanes, inverse_size, per_unit
from .sharing import share_out


@no_inline
def prepare_new[
    dtype: DType, heads: Int, key_heads: Int, head_dim: Int, has_values: Bool, unit_values: Bool
](
    keys: Pointer[mut=True, Scalar[dtype], _],
    values: Pointer[mut=True, Scalar[dtype], _],
    qkv: Pointer[mut=_, Scalar[dtype], _],
    weight: Pointer[mut=_, Scalar[dtype], _],
    rope: Pointer[mut=_, Float32, _],
    tokens: Int,
    length: Int,
    epsilon: Float32,
):
    """New keys and values, [tokens][key_heads][head_dim]."""
    comptime CHANNELS = heads + (2 if has_values else 1) * key_heads
    var tasks = ceildiv(tokens, TILE_COLUMNS)

    def prepare(task: Int) {imm}:
        for token in range(task * TILE_COLUMNS, min(tokens, (task + 1) * TILE_COLUMNS)):
            for head in range(key_heads):
                var place = (token * key_heads + head) * head_dim
                var source = qkv.unsafe_offset((token * CHANNELS + heads + head) * head_dim)
                var table = rope.unsafe_offset(token % length * head_dim)
                var turned = prepared[dtype, head_dim, True](source, weight, table, epsilon)
                comptime for i in range(head_dim // LANES):
                    keys.unsafe_store(place + i * LANES, turned[i].cast[dtype]())
                var value = source.unsafe_offset(key_heads * head_dim if has_values else 0)
                var scale = Float32(1)
                comptime if unit_values:
                    scale = inverse_size(value, head_dim, epsilon)
                comptime for i in range(head_dim // LANES):
                    var x = value.unsafe_load[width=LANES](i * LANES).cast[F32]()
                    values.unsafe_store(place + i * LANES, (x * scale).cast[dtype]())

    share_out(prepare, tasks, 2 * tokens * key_heads * head_dim)


def turn_mask(
    mask: Pointer[mut=_, Float32, _], turned: Pointer[mut=True, Float32, _], queries: Int, seen: Int, keys: Int
):
    """The mask of a panel of queries, [queries][seen] to [keys][32]; keys that are not there are hidden."""
    for key in range(keys):
        for query in range(TILE_COLUMNS):
            var value = mask.unsafe_load(query * seen + key) if query < queries and key < seen else MASKED
            turned.unsafe_store(key * TILE_COLUMNS + query, value)


@no_inline
def pack_kept[
    dtype: DType, head_dim: Int
](
    old_keys: Pointer[mut=_, Scalar[dtype], _],
    new_keys: Pointer[mut=_, Scalar[dtype], _],
    old_values: Pointer[mut=_, Scalar[dtype], _],
    new_values: Pointer[mut=_, Scalar[dtype], _],
    keys: Pointer[mut=True, UInt32, _],
    values: Pointer[mut=True, UInt32, _],
    first: Int,
    cached: Int,
    seen: Int,
    stride: Int,
    units: Int,
):
    """A block of keys [8 panels][units of a head][12] and of values [panels][units along the keys][12], of one head.

    Args:
        old_keys: From the first one on that was read before, `stride` apart.
        new_keys: The same of new ones, and so on.
        old_values: See there.
        new_values: See there.
        keys: Of the block.
        values: Of the head.
        first: Key of the block.
        cached: Keys that were read before.
        seen: Those, and the new ones; what is behind them is zero.
        stride: From a key to the next.
        units: Along all keys.
    """
    comptime UNITS = head_dim // per_unit[dtype]()
    comptime PANELS = ceildiv(head_dim, TILE_ROWS)
    comptime KEYS_OF_UNIT = per_unit[dtype]()
    for key in range(first, first + KEYS):
        var within = key - first
        var place = keys.unsafe_offset(within // TILE_ROWS * UNITS * TILE_ROWS + within % TILE_ROWS)
        var head = Array[Lanes, head_dim // LANES](fill=Lanes(0))
        if key < seen:
            var is_old = key < cached
            var at = key * stride if is_old else (key - cached) * stride
            comptime for i in range(head_dim // LANES):
                var numbers = old_keys.unsafe_load[width=LANES](at + i * LANES) if is_old else new_keys.unsafe_load[
                    width=LANES
                ](at + i * LANES)
                head[i] = numbers.cast[F32]()
        store_units[dtype, head_dim](head, place, TILE_ROWS)
    var line = Array[UInt32, PANELS * TILE_ROWS](fill=UInt32(0))
    for unit in range(first // KEYS_OF_UNIT, (first + KEYS) // KEYS_OF_UNIT):
        comptime for i in range(head_dim // LANES):
            var numbers = Array[SIMD[dtype, LANES], KEYS_OF_UNIT](fill=SIMD[dtype, LANES](0))
            comptime for j in range(KEYS_OF_UNIT):
                var key = unit * KEYS_OF_UNIT + j
                if key < cached:
                    numbers[j] = old_values.unsafe_load[width=LANES](key * stride + i * LANES)
                elif key < seen:
                    numbers[j] = new_values.unsafe_load[width=LANES]((key - cached) * stride + i * LANES)
            var together = bitcast[U32, LANES](joined[dtype](numbers))
            comptime for j in range(LANES):
                line[i * LANES + j] = together[j]
        for panel in range(PANELS):
            comptime for row in range(TILE_ROWS):
                values.unsafe_store((panel * units + unit) * TILE_ROWS + row, line[panel * TILE_ROWS + row])
