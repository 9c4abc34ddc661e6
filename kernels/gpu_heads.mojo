"""Queries and keys on a GPU: RMSNorm of every head and RoPE, from their fused product into two tensors.

    a head: head_dim / 8 lanes side by side, eight numbers a lane     sum of squares by shuffles
    its other half, which RoPE turns each number with                 half as many lanes away, by a shuffle

One pass, nothing in between is written. Twin: what `graphs.model.attention.rotary_attention` does with plain operations.
"""

import extensibility
import max.gpu.primitives.warp as warp

from extensibility import InputTensor, OutputTensor
from max.gpu import block_idx, thread_idx
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.memory import Pointer

from .gpu import EACH, F32, Eight, inverse_root, load_eight, store_eight

comptime THREADS = 256


@extensibility.register("max_zimage.rotary_heads")
struct RotaryHeads:
    """Query, key = rope(norm(heads))."""

    @staticmethod
    def execute[
        target: StaticString, query_heads: Int, key_heads: Int, all_heads: Int, head_dim: Int
    ](
        query: OutputTensor[rank=4, ...],
        key: OutputTensor[dtype=query.dtype, rank=4, ...],
        heads: InputTensor[dtype=query.dtype, rank=4, ...],
        query_weight: InputTensor[dtype=query.dtype, rank=1, ...],
        key_weight: InputTensor[dtype=query.dtype, rank=1, ...],
        rope: InputTensor[dtype=F32, rank=4, ...],
        epsilon: Float32,
        ctx: DeviceContext,
    ) raises:
        """Normalize and turn.

        Parameters:
            target: The device.
            query_heads: Of the queries, which come first.
            key_heads: Of the keys, behind them.
            all_heads: Of a token: those behind the keys are not read.
            head_dim: Width of a head: 8 times a power of two, 16 to 256.

        Args:
            query: [items, length, query_heads, head_dim].
            key: [items, length, key_heads, head_dim].
            heads: [items, length, all_heads, head_dim].
            query_weight: [head_dim], of the queries' RMSNorm.
            key_weight: [head_dim], of the keys' RMSNorm.
            rope: [1 or items, length, head_dim / 2, 2], cosine and sine of each pair's angle.
            epsilon: Added to the mean squares.
            ctx: Runs it.
        """
        comptime LANES = head_dim // EACH
        comptime assert query_heads + key_heads <= all_heads, "there are fewer heads than queries and keys"
        comptime assert head_dim % EACH == 0, "a head must be whole vectors of eight"
        comptime assert LANES & (LANES - 1) == 0 and 2 <= LANES <= 32, "a head must be 2 to 32 lanes, a power of two"
        var tokens = heads.dim_size(0) * heads.dim_size(1)
        var table = rope.dim_size(0) * rope.dim_size(1)
        comptime if target == "gpu":
            comptime HEADS = query_heads + key_heads
            ctx.enqueue_function[_on_gpu[query.dtype, query_heads, key_heads, all_heads, head_dim]](
                query.unsafe_ptr(),
                key.unsafe_ptr(),
                heads.unsafe_ptr(),
                query_weight.unsafe_ptr(),
                key_weight.unsafe_ptr(),
                rope.unsafe_ptr(),
                UInt32(table),
                epsilon,
                grid_dim=(tokens, ceildiv(HEADS * LANES, THREADS), 1),
                block_dim=(THREADS, 1, 1),
            )
        else:
            for token in range(tokens):
                for head in range(query_heads + key_heads):
                    _on_cpu[query.dtype, query_heads, key_heads, all_heads, head_dim](
                        query.unsafe_ptr(),
                        key.unsafe_ptr(),
                        heads.unsafe_ptr(),
                        query_weight.unsafe_ptr(),
                        key_weight.unsafe_ptr(),
                        rope.unsafe_ptr().unsafe_offset(token % table * head_dim),
                        epsilon,
                        token,
                        head,
                    )


def _on_gpu[
    dtype: DType, query_heads: Int, key_heads: Int, all_heads: Int, head_dim: Int
](
    query: Pointer[Scalar[dtype], MutAnyOrigin],
    key: Pointer[Scalar[dtype], MutAnyOrigin],
    heads: Pointer[Scalar[dtype], MutAnyOrigin],
    query_weight: Pointer[Scalar[dtype], MutAnyOrigin],
    key_weight: Pointer[Scalar[dtype], MutAnyOrigin],
    rope: Pointer[Float32, MutAnyOrigin],
    table: UInt32,
    epsilon: Float32,
):
    comptime LANES = head_dim // EACH
    comptime HEADS = query_heads + key_heads
    var token, unit = Int(block_idx.x), Int(block_idx.y) * THREADS + Int(thread_idx.x)
    var lane = unit % LANES
    # Lanes behind the last head go along with it: those of a warp exchange numbers together.
    var head = min(unit // LANES, HEADS - 1)
    var x = load_eight(heads, (token * all_heads + head) * head_dim + lane * EACH)
    var squares = (x * x).reduce_add()
    comptime for step in range(5):
        comptime if 1 << step < LANES:
            squares += warp.shuffle_xor(squares, UInt32(1 << step))
    var weight = load_eight(query_weight if head < query_heads else key_weight, lane * EACH)
    var y = x * inverse_root(squares * Float32(1.0 / Float64(head_dim)), epsilon) * weight
    var other = Eight()
    comptime for i in range(EACH):
        other[i] = warp.shuffle_xor(y[i], UInt32(LANES // 2))
    var at = (Int(UInt32(block_idx.x) % table) * (head_dim // 2) + lane % (LANES // 2) * EACH) * 2
    var turn = rope.unsafe_load[width=2 * EACH, alignment=16](at).deinterleave()
    var turned = other * turn[1]
    var z = y * turn[0] + (turned if lane >= LANES // 2 else -turned)
    if unit // LANES < query_heads:
        store_eight(query, (token * query_heads + head) * head_dim + lane * EACH, z)
    elif unit // LANES < HEADS:
        store_eight(key, (token * key_heads + head - query_heads) * head_dim + lane * EACH, z)


def _on_cpu[
    dtype: DType, query_heads: Int, key_heads: Int, all_heads: Int, head_dim: Int
](
    query: Pointer[mut=True, Scalar[dtype], _],
    key: Pointer[mut=True, Scalar[dtype], _],
    heads: Pointer[mut=_, Scalar[dtype], _],
    query_weight: Pointer[mut=_, Scalar[dtype], _],
    key_weight: Pointer[mut=_, Scalar[dtype], _],
    turns: Pointer[mut=_, Float32, _],
    epsilon: Float32,
    token: Int,
    head: Int,
):
    """One head of one token by the same arithmetic, for tests; `turns` are the token's angles."""
    comptime HALF = head_dim // 2
    var source = heads.unsafe_offset((token * all_heads + head) * head_dim)
    var squares = Float32(0)
    for i in range(head_dim):
        var x = source.unsafe_load(i).cast[F32]()
        squares += x * x
    var factor = inverse_root(squares * Float32(1.0 / Float64(head_dim)), epsilon)
    for i in range(head_dim):
        var j = i + HALF if i < HALF else i - HALF
        var of = query_weight.unsafe_load(i) if head < query_heads else key_weight.unsafe_load(i)
        var beside = query_weight.unsafe_load(j) if head < query_heads else key_weight.unsafe_load(j)
        var y = source.unsafe_load(i).cast[F32]() * factor * of.cast[F32]()
        var other = source.unsafe_load(j).cast[F32]() * factor * beside.cast[F32]()
        var turned = other * turns.unsafe_load(i % HALF * 2 + 1)
        var z = y * turns.unsafe_load(i % HALF * 2) + (turned if i >= HALF else -turned)
        if head < query_heads:
            query.unsafe_store((token * query_heads + head) * head_dim + i, z.cast[dtype]())
        else:
            key.unsafe_store((token * key_heads + head - query_heads) * head_dim + i, z.cast[dtype]())
