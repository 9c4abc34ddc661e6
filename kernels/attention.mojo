"""Attention in float32 or bfloat16 on a CPU, from the fused product of queries, keys and values to the mixed values.

    keys:    RMSNorm, RoPE -> panels of 12 keys, in units along the head        once for all queries
    values:  panels of 12 elements of the head, in units along the keys         once for all queries
    queries: RMSNorm, RoPE -> a panel of 32 queries, in units along the head
    scoresᵀ: tiles of 12 keys x 32 queries, a block of keys at a time           softmax runs down the lanes
    mixedᵀ:  tiles of 12 elements x 32 queries, corrected as the maximum grows

No more scores than one block's exist at a time. Twin: what `graphs.model.attention` does on other devices.

Reference: Dao et al., FlashAttention (arXiv 2205.14135), algorithm 1.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.collections import Array
from std.math import ceildiv, exp, rsqrt
from std.memory import Pointer, bitcast
from std.memory.alloc import Layout, alloc, dealloc

from .heads import KEYS, joined, pack_keys, pack_queries, pack_values
from .products import F32, LANES, TILE_COLUMNS, TILE_ROWS, U32, Lanes, per_unit, tile_products
from .sharing import PRODUCTS, share_out

comptime MASKED: Float32 = -1e30  # exp() of it is zero next to any real score, and a row of it alone gives no NaN


@extensibility.register("max_zimage.attention")
struct Attention:
    """Output = softmax(scale · rope(norm(query)) rope(norm(key))ᵀ) value."""

    @staticmethod
    def execute[
        target: StaticString,
        heads: Int,
        key_value_heads: Int,
        head_dim: Int,
        causal: Bool,
        rotary: Bool,
    ](
        output: OutputTensor[rank=4, ...],
        qkv: InputTensor[dtype=output.dtype, rank=4, ...],
        query_weight: InputTensor[dtype=output.dtype, rank=1, ...],
        key_weight: InputTensor[dtype=output.dtype, rank=1, ...],
        rope: InputTensor[dtype=F32, rank=4, ...],
        valid_length: InputTensor[dtype=U32, rank=1, ...],
        epsilon: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Attend.

        Parameters:
            target: The device.
            heads: Of the queries.
            key_value_heads: Of keys and values.
            head_dim: Width of a head.
            causal: Whether a query sees no key behind it.
            rotary: Whether queries and keys are normalized and turned; else norms, `rope` and `epsilon` are not read.

        Args:
            output: [items, length, heads, head_dim].
            qkv: [items, length, heads + 2 key_value_heads, head_dim].
            query_weight: [head_dim], of the queries' RMSNorm.
            key_weight: [head_dim], of the keys' RMSNorm.
            rope: [1 or items, length, head_dim / 2, 2], cosine and sine of each pair's angle.
            valid_length: [items]; keys at this position and beyond are not attended.
            epsilon: [1], added to the mean squares.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.attention is for CPUs"
        comptime assert head_dim % (2 * LANES) == 0, "a head's halves must be whole vectors"
        comptime assert heads % key_value_heads == 0, "heads share keys and values in equal groups"
        comptime dtype = output.dtype
        comptime UNITS = head_dim // per_unit[dtype]()
        comptime VALUE_PANELS = ceildiv(head_dim, TILE_ROWS)
        comptime KEY_UNITS = KEYS // per_unit[dtype]()  # in a block
        comptime CHANNELS = heads + 2 * key_value_heads
        var items, length = qkv.dim_size(0), qkv.dim_size(1)
        if rotary and rope.dim_size(0) != 1 and rope.dim_size(0) != items:
            raise Error("there are ", rope.dim_size(0), " RoPE tables for ", items, " items")
        var blocks = ceildiv(length, KEYS)
        var key_size, value_size = blocks * KEYS * UNITS, blocks * KEY_UNITS * VALUE_PANELS * TILE_ROWS
        var tables = 0 if rope.dim_size(0) == 1 else length * head_dim  # from an item's table to the next
        var source, target_ptr, angles = qkv.unsafe_ptr(), output.unsafe_ptr(), rope.unsafe_ptr()
        var query_norm, key_norm = query_weight.unsafe_ptr(), key_weight.unsafe_ptr()
        var lengths, eps = valid_length.unsafe_ptr(), epsilon.unsafe_ptr().unsafe_load(0)
        var packed_keys = alloc(Layout[UInt32](count=items * key_value_heads * key_size))
        var packed_values = alloc(Layout[UInt32](count=items * key_value_heads * value_size))
        var keys, values = packed_keys.unsafe_ptr(), packed_values.unsafe_ptr()

        def pack(task: Int) {imm}:
            var group, block = task // blocks, task % blocks
            var item, head = group // key_value_heads, group % key_value_heads
            pack_keys[dtype, head_dim, rotary](
                source.unsafe_offset((item * length * CHANNELS + heads + head) * head_dim),
                keys.unsafe_offset(group * key_size + block * KEYS * UNITS),
                key_norm,
                angles.unsafe_offset(item * tables),
                block * KEYS,
                length,
                CHANNELS * head_dim,
                eps,
            )
            pack_values[dtype, head_dim](
                source.unsafe_offset((item * length * CHANNELS + heads + key_value_heads + head) * head_dim),
                values.unsafe_offset(group * value_size),
                block * KEYS,
                length,
                CHANNELS * head_dim,
                blocks * KEY_UNITS,
            )

        share_out(pack, items * key_value_heads * blocks, 4 * items * key_value_heads * length * head_dim)
        var panels = ceildiv(length, TILE_COLUMNS)

        def attend(task: Int) {imm}:
            # The panels of one head follow each other, so that its keys and values stay in the cache.
            var group, panel = task // panels, task % panels
            var item, head = group // heads, group % heads
            var shared = item * key_value_heads + head // (heads // key_value_heads)
            var first = panel * TILE_COLUMNS
            var known = min(length, Int(lengths.unsafe_load(item)))
            _attend[dtype, head_dim, causal, rotary](
                target_ptr.unsafe_offset((item * length * heads + head) * head_dim),
                heads * head_dim,
                source.unsafe_offset((item * length * CHANNELS + head) * head_dim),
                CHANNELS * head_dim,
                query_norm,
                angles.unsafe_offset(item * tables),
                keys.unsafe_offset(shared * key_size),
                values.unsafe_offset(shared * value_size),
                blocks * KEY_UNITS,
                first,
                length,
                min(known, first + TILE_COLUMNS) if causal else known,
                eps,
            )

        var scores = items * heads * length * length
        share_out(attend, items * heads * panels, 2 * scores + 2 * scores * head_dim // PRODUCTS)
        dealloc(packed_keys^)
        dealloc(packed_values^)


@no_inline
def _attend[
    dtype: DType, head_dim: Int, causal: Bool, rotary: Bool
](
    output: Pointer[mut=True, Scalar[dtype], _],
    output_stride: Int,
    source: Pointer[mut=_, Scalar[dtype], _],
    stride: Int,
    weight: Pointer[mut=_, Scalar[dtype], _],
    table: Pointer[mut=_, Float32, _],
    keys: Pointer[mut=_, UInt32, _],
    values: Pointer[mut=_, UInt32, _],
    value_units: Int,
    first: Int,
    length: Int,
    known: Int,
    epsilon: Float32,
):
    """Attend for a panel of queries, to keys 0 to known."""
    comptime UNITS = head_dim // per_unit[dtype]()
    comptime KEY_UNITS = KEYS // per_unit[dtype]()
    comptime PANELS = ceildiv(head_dim, TILE_ROWS)
    comptime SCALE = rsqrt(Float32(head_dim))
    var sums_memory = alloc(Layout[Float32](count=(PANELS * TILE_ROWS + KEYS) * TILE_COLUMNS))
    var operands_memory = alloc(Layout[UInt32](count=(UNITS + KEY_UNITS) * TILE_COLUMNS))
    var mixed = sums_memory.unsafe_ptr()  # [PANELS * 12][32]
    var scores = mixed.unsafe_offset(PANELS * TILE_ROWS * TILE_COLUMNS)  # [KEYS][32]
    var queries = operands_memory.unsafe_ptr()  # [UNITS][32]
    var weights = queries.unsafe_offset(UNITS * TILE_COLUMNS)  # [KEY_UNITS][32]
    pack_queries[dtype, head_dim, rotary](source, queries, weight, table, first, length, stride, epsilon)
    for i in range(2 * PANELS * TILE_ROWS):
        mixed.unsafe_store(i * LANES, Lanes(0))
    var tops = Array[Lanes, 2](fill=Lanes(MASKED))
    var sums = Array[Lanes, 2](fill=Lanes(0))
    for start in range(0, known, KEYS):
        for panel in range(KEYS // TILE_ROWS):
            var rows = keys.unsafe_offset((start + panel * TILE_ROWS) * UNITS)
            var tile = tile_products[dtype](rows, queries, UNITS)
            comptime for i in range(2 * TILE_ROWS):
                scores.unsafe_store((panel * 2 * TILE_ROWS + i) * LANES, tile[i] * SCALE)
        if causal or start + KEYS > known:
            _mask[causal](scores, start, known, first)
        var corrections = Array[Lanes, 2](fill=Lanes(0))
        comptime for half in range(2):
            corrections[half] = weigh[dtype](scores, weights, tops[half], sums[half], half * LANES)
        var block = values.unsafe_offset(start // per_unit[dtype]() * TILE_ROWS)
        mix[dtype, head_dim](mixed, block, value_units, weights, corrections)
    var target = output.unsafe_offset(first * output_stride)
    store_mixed[dtype, head_dim](target, output_stride, mixed, sums, min(TILE_COLUMNS, length - first))
    dealloc(sums_memory^)
    dealloc(operands_memory^)


def _mask[causal: Bool](scores: Pointer[mut=True, Float32, _], start: Int, known: Int, first: Int):
    """Hide keys that are not there and, if causal, those behind a query."""
    comptime for half in range(2):
        var query = Lanes(0)
        comptime for lane in range(LANES):
            query[lane] = Float32(first + half * LANES + lane)
        for key in range(KEYS):
            var place = key * TILE_COLUMNS + half * LANES
            if start + key >= known:
                scores.unsafe_store(place, Lanes(MASKED))
            elif causal:
                var behind = Lanes(Float32(start + key)).gt(query)
                scores.unsafe_store(place, behind.select(Lanes(MASKED), scores.unsafe_load[width=LANES](place)))


@always_inline
def weigh[
    dtype: DType
](
    scores: Pointer[mut=_, Float32, _],
    weights: Pointer[mut=True, UInt32, _],
    mut top: Lanes,
    mut sum: Lanes,
    lane: Int,
) -> Lanes:
    """Scores [KEYS][32] to weights in units of keys [KEY_UNITS][32], for sixteen queries.

    Returns:
        What sums over earlier keys are to be multiplied with.
    """
    comptime KEYS_OF_UNIT = per_unit[dtype]()
    var highest = top
    for key in range(KEYS):
        highest = max(highest, scores.unsafe_load[width=LANES](key * TILE_COLUMNS + lane))
    var correction = exp(top - highest)
    var total = Lanes(0)
    for unit in range(KEYS // KEYS_OF_UNIT):
        var numbers = Array[SIMD[dtype, LANES], KEYS_OF_UNIT](fill=SIMD[dtype, LANES](0))
        comptime for j in range(KEYS_OF_UNIT):
            var score = scores.unsafe_load[width=LANES]((unit * KEYS_OF_UNIT + j) * TILE_COLUMNS + lane)
            var weight = exp(score - highest)
            total += weight
            numbers[j] = weight.cast[dtype]()
        weights.unsafe_store(unit * TILE_COLUMNS + lane, bitcast[U32, LANES](joined[dtype](numbers)))
    top = highest
    sum = sum.fma(correction, total)
    return correction


@always_inline
def mix[
    dtype: DType, head_dim: Int
](
    mixed: Pointer[mut=True, Float32, _],
    values: Pointer[mut=_, UInt32, _],
    value_units: Int,
    weights: Pointer[mut=_, UInt32, _],
    corrections: Array[Lanes, 2],
):
    """Correct what is mixed of earlier keys, and add a block's values times their weights.

    Args:
        mixed: [panels of a head * 12][32].
        values: The block's in the first panel, [units][12].
        value_units: From one panel to the next.
        weights: [KEY_UNITS][32].
        corrections: Of both halves of the queries.
    """
    for panel in range(ceildiv(head_dim, TILE_ROWS)):
        var rows = values.unsafe_offset(panel * value_units * TILE_ROWS)
        var tile = tile_products[dtype](rows, weights, KEYS // per_unit[dtype]())
        comptime for i in range(2 * TILE_ROWS):
            var place = (panel * 2 * TILE_ROWS + i) * LANES
            var before = mixed.unsafe_load[width=LANES](place)
            mixed.unsafe_store(place, before.fma(corrections[i % 2], tile[i]))


@always_inline
def store_mixed[
    dtype: DType, head_dim: Int
](
    output: Pointer[mut=True, Scalar[dtype], _],
    stride: Int,
    mixed: Pointer[mut=_, Float32, _],
    sums: Array[Lanes, 2],
    queries: Int,
):
    """What is mixed by the sums of its weights, rounded, turned back: a query's head is `stride` behind the last one's."""
    for query in range(queries):
        var share = 1 / (sums[0] if query < LANES else sums[1])[query % LANES]
        var place = output.unsafe_offset(query * stride)
        for i in range(head_dim):
            place.unsafe_store(i, (mixed.unsafe_load(i * TILE_COLUMNS + query) * share).cast[dtype]())
