"""Attention over what was read before and what is new, in float32 or bfloat16 on a CPU.

    new keys:   RMSNorm, RoPE;  new values: as they are, or RMSNorm without a weight       also given back
    keys:       panels of 12, in units along the head; values: panels of 12 elements of the head, along the keys
    mask:       turned, so that 32 queries lie side by side                                once for all heads
    queries:    RMSNorm, RoPE -> a panel of 32, attended to as in `attention.mojo`

Twin: what `graphs.model.cached_attention` does with plain operations.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.collections import Array
from std.math import ceildiv
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc

from .attention import MASKED, mix, store_mixed, weigh
from .heads import KEYS, pack_queries
from .kept import pack_kept, prepare_new, turn_mask
from .products import F32, LANES, TILE_COLUMNS, TILE_ROWS, Lanes, per_unit, tile_products
from .sharing import PRODUCTS, share_out


@extensibility.register("max_zimage.cached_attention")
struct CachedAttention:
    """Output = softmax(scale · rope(norm(query)) (past | rope(norm(key)))ᵀ + mask) (past | value)."""

    @staticmethod
    def execute[
        target: StaticString,
        heads: Int,
        key_heads: Int,
        head_dim: Int,
        has_values: Bool,
        unit_values: Bool,
    ](
        output: OutputTensor[rank=4, ...],
        keys: OutputTensor[dtype=output.dtype, rank=4, ...],
        values: OutputTensor[dtype=output.dtype, rank=4, ...],
        qkv: InputTensor[dtype=output.dtype, rank=4, ...],
        query_weight: InputTensor[dtype=output.dtype, rank=1, ...],
        key_weight: InputTensor[dtype=output.dtype, rank=1, ...],
        rope: InputTensor[dtype=F32, rank=3, ...],
        mask: InputTensor[dtype=F32, rank=3, ...],
        past_keys: InputTensor[dtype=output.dtype, rank=4, ...],
        past_values: InputTensor[dtype=output.dtype, rank=4, ...],
        factors: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Attend.

        Parameters:
            target: The device.
            heads: Of the queries.
            key_heads: Of keys and values.
            head_dim: Width of a head.
            has_values: Whether values have channels of their own; else they are the keys before norm and RoPE.
            unit_values: Whether values are normalized, without a weight.

        Args:
            output: [rows, length, heads, head_dim].
            keys: New keys as they are attended to, [rows, length, key_heads, head_dim].
            values: New values, of the same shape.
            qkv: [rows, length, heads + key_heads, or twice key_heads, head_dim].
            query_weight: [head_dim], of the queries' RMSNorm.
            key_weight: [head_dim], of the keys' RMSNorm.
            rope: [length, head_dim / 2, 2], cosine and sine of each pair's angle.
            mask: [rows, length, cached + length], added to the scores.
            past_keys: [rows, cached, key_heads, head_dim].
            past_values: The same.
            factors: [2], what is added to mean squares, and what scores are multiplied with.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.cached_attention is for CPUs"
        comptime assert head_dim % (2 * LANES) == 0, "a head's halves must be whole vectors"
        comptime assert heads % key_heads == 0, "heads share keys and values in equal groups"
        comptime dtype = output.dtype
        var rows, length, cached = qkv.dim_size(0), qkv.dim_size(1), past_keys.dim_size(1)
        if mask.dim_size(2) != cached + length or past_values.dim_size(1) != cached:
            raise Error("the mask has ", mask.dim_size(2), " keys, and there are ", cached + length)
        if rope.dim_size(0) != length:
            raise Error("there are ", rope.dim_size(0), " rows of the RoPE table for ", length, " tokens")
        var read = factors.unsafe_ptr()
        prepare_new[dtype, heads, key_heads, head_dim, has_values, unit_values](
            keys.unsafe_ptr(),
            values.unsafe_ptr(),
            qkv.unsafe_ptr(),
            key_weight.unsafe_ptr(),
            rope.unsafe_ptr(),
            rows * length,
            length,
            read.unsafe_load(0),
        )
        comptime CHANNELS = heads + (2 if has_values else 1) * key_heads
        _attend_all[dtype, head_dim](
            output.unsafe_ptr(),
            keys.unsafe_ptr(),
            values.unsafe_ptr(),
            qkv.unsafe_ptr(),
            query_weight.unsafe_ptr(),
            rope.unsafe_ptr(),
            mask.unsafe_ptr(),
            past_keys.unsafe_ptr(),
            past_values.unsafe_ptr(),
            rows,
            length,
            cached,
            heads,
            key_heads,
            CHANNELS,
            read.unsafe_load(0),
            read.unsafe_load(1),
        )


@no_inline
def _attend_all[
    dtype: DType, head_dim: Int
](
    output: Pointer[mut=True, Scalar[dtype], _],
    new_keys: Pointer[mut=_, Scalar[dtype], _],
    new_values: Pointer[mut=_, Scalar[dtype], _],
    qkv: Pointer[mut=_, Scalar[dtype], _],
    query_weight: Pointer[mut=_, Scalar[dtype], _],
    rope: Pointer[mut=_, Float32, _],
    mask: Pointer[mut=_, Float32, _],
    past_keys: Pointer[mut=_, Scalar[dtype], _],
    past_values: Pointer[mut=_, Scalar[dtype], _],
    rows: Int,
    length: Int,
    cached: Int,
    heads: Int,
    key_heads: Int,
    channels: Int,
    epsilon: Float32,
    scale: Float32,
):
    comptime UNITS = head_dim // per_unit[dtype]()
    comptime VALUE_PANELS = ceildiv(head_dim, TILE_ROWS)
    comptime KEY_UNITS = KEYS // per_unit[dtype]()  # in a block
    var seen = cached + length
    var blocks, panels = ceildiv(seen, KEYS), ceildiv(length, TILE_COLUMNS)
    var key_size, value_size = blocks * KEYS * UNITS, blocks * KEY_UNITS * VALUE_PANELS * TILE_ROWS
    var mask_size = blocks * KEYS * TILE_COLUMNS
    var packed_keys = alloc(Layout[UInt32](count=rows * key_heads * key_size))
    var packed_values = alloc(Layout[UInt32](count=rows * key_heads * value_size))
    var turned_masks = alloc(Layout[Float32](count=rows * panels * mask_size))
    var keys, values, masks = packed_keys.unsafe_ptr(), packed_values.unsafe_ptr(), turned_masks.unsafe_ptr()
    var groups = rows * key_heads

    def pack(task: Int) {imm}:
        if task >= groups * blocks:  # a panel's mask
            var row, panel = (task - groups * blocks) // panels, (task - groups * blocks) % panels
            turn_mask(
                mask.unsafe_offset((row * length + panel * TILE_COLUMNS) * seen),
                masks.unsafe_offset((row * panels + panel) * mask_size),
                min(TILE_COLUMNS, length - panel * TILE_COLUMNS),
                seen,
                blocks * KEYS,
            )
            return
        var group, block = task // blocks, task % blocks
        var row, head = group // key_heads, group % key_heads
        var old, new = (row * cached * key_heads + head) * head_dim, (row * length * key_heads + head) * head_dim
        pack_kept[dtype, head_dim](
            past_keys.unsafe_offset(old),
            new_keys.unsafe_offset(new),
            past_values.unsafe_offset(old),
            new_values.unsafe_offset(new),
            keys.unsafe_offset(group * key_size + block * KEYS * UNITS),
            values.unsafe_offset(group * value_size),
            block * KEYS,
            cached,
            seen,
            key_heads * head_dim,
            blocks * KEY_UNITS,
        )

    var numbers = 2 * groups * seen * head_dim + rows * length * seen
    share_out(pack, groups * blocks + rows * panels, numbers)

    def attend(task: Int) {imm}:
        # The panels of one head follow each other, so that its keys and values stay in the cache.
        var group, panel = task // panels, task % panels
        var row, head = group // heads, group % heads
        var shared = row * key_heads + head // (heads // key_heads)
        _attend[dtype, head_dim](
            output.unsafe_offset((row * length * heads + head) * head_dim),
            heads * head_dim,
            qkv.unsafe_offset((row * length * channels + head) * head_dim),
            channels * head_dim,
            query_weight,
            rope,
            masks.unsafe_offset((row * panels + panel) * mask_size),
            keys.unsafe_offset(shared * key_size),
            values.unsafe_offset(shared * value_size),
            blocks,
            panel * TILE_COLUMNS,
            length,
            epsilon,
            scale,
        )

    var scores = rows * heads * length * seen
    share_out(attend, rows * heads * panels, 2 * scores + 2 * scores * head_dim // PRODUCTS)
    dealloc(packed_keys^)
    dealloc(packed_values^)
    dealloc(turned_masks^)


@no_inline
def _attend[
    dtype: DType, head_dim: Int
](
    output: Pointer[mut=True, Scalar[dtype], _],
    output_stride: Int,
    source: Pointer[mut=_, Scalar[dtype], _],
    stride: Int,
    weight: Pointer[mut=_, Scalar[dtype], _],
    table: Pointer[mut=_, Float32, _],
    mask: Pointer[mut=_, Float32, _],
    keys: Pointer[mut=_, UInt32, _],
    values: Pointer[mut=_, UInt32, _],
    blocks: Int,
    first: Int,
    length: Int,
    epsilon: Float32,
    scale: Float32,
):
    """Attend for a panel of queries, to all keys."""
    comptime UNITS = head_dim // per_unit[dtype]()
    comptime KEY_UNITS = KEYS // per_unit[dtype]()
    comptime PANELS = ceildiv(head_dim, TILE_ROWS)
    var sums_memory = alloc(Layout[Float32](count=(PANELS * TILE_ROWS + KEYS) * TILE_COLUMNS))
    var operands_memory = alloc(Layout[UInt32](count=(UNITS + KEY_UNITS) * TILE_COLUMNS))
    var mixed = sums_memory.unsafe_ptr()  # [PANELS * 12][32]
    var scores = mixed.unsafe_offset(PANELS * TILE_ROWS * TILE_COLUMNS)  # [KEYS][32]
    var queries = operands_memory.unsafe_ptr()  # [UNITS][32]
    var weights = queries.unsafe_offset(UNITS * TILE_COLUMNS)  # [KEY_UNITS][32]
    pack_queries[dtype, head_dim, True](source, queries, weight, table, first, length, stride, epsilon)
    for i in range(2 * PANELS * TILE_ROWS):
        mixed.unsafe_store(i * LANES, Lanes(0))
    var tops = Array[Lanes, 2](fill=Lanes(MASKED))
    var sums = Array[Lanes, 2](fill=Lanes(0))
    for block in range(blocks):
        for panel in range(KEYS // TILE_ROWS):
            var rows = keys.unsafe_offset((block * KEYS + panel * TILE_ROWS) * UNITS)
            var hidden = mask.unsafe_offset((block * KEYS + panel * TILE_ROWS) * TILE_COLUMNS)
            var tile = tile_products[dtype](rows, queries, UNITS)
            comptime for i in range(2 * TILE_ROWS):
                var score = tile[i].fma(scale, hidden.unsafe_load[width=LANES](i * LANES))
                scores.unsafe_store((panel * 2 * TILE_ROWS + i) * LANES, score)
        var corrections = Array[Lanes, 2](fill=Lanes(0))
        comptime for half in range(2):
            corrections[half] = weigh[dtype](scores, weights, tops[half], sums[half], half * LANES)
        var there = values.unsafe_offset(block * KEY_UNITS * TILE_ROWS)
        mix[dtype, head_dim](mixed, there, blocks * KEY_UNITS, weights, corrections)
    var target = output.unsafe_offset(first * output_stride)
    store_mixed[dtype, head_dim](target, output_stride, mixed, sums, min(TILE_COLUMNS, length - first))
    dealloc(sums_memory^)
    dealloc(operands_memory^)
