"""Attention with one head that is too wide for kernels that keep a head in registers, on a GPU.

    scores = query keyᵀ     cuBLAS, float32, for as many queries as the scratch memory holds
    weights = softmax(scores / √width)     a block of threads a row, float32, rounded once
    output = weights value     cuBLAS

Twin: `graphs.model.attention.attention`.

Reference: Milakov, Gimelshein, Online normalizer calculation for softmax (2018).
"""

import extensibility
import max.gpu.primitives.warp as warp

from extensibility import InputTensor, OutputTensor
from layout import Coord, TileTensor, row_major
from linalg.matmul.vendor.blas import matmul
from max.gpu import barrier, block_idx, lane_id, thread_idx, warp_id
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from std.math import exp2, recip, sqrt
from std.memory import Pointer, unsafe_stack_allocation
from std.memory.alloc import Layout, alloc, dealloc

from .gpu import F32, block_sum

comptime BF16 = DType.bfloat16
comptime SCORES = 1 << 27
"""Scores at a time: 512 MiB, and half of it for their weights."""
comptime THREADS = 512
comptime WARPS = THREADS // 32
comptime FOUR = 4
"""Scores that a thread takes at a time, 16 bytes; the length is a multiple of it."""
comptime LOG2_E: Float64 = 1.4426950408889634
comptime LOWEST = Float32.MIN_FINITE


@extensibility.register("max_zimage.wide_attention")
struct WideAttention:
    """Output = softmax(query keyᵀ / √width) value."""

    @staticmethod
    def execute[
        target: StaticString, width: Int
    ](
        output: OutputTensor[dtype=BF16, rank=3, ...],
        query: InputTensor[dtype=BF16, rank=3, ...],
        key: InputTensor[dtype=BF16, rank=3, ...],
        value: InputTensor[dtype=BF16, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Attend.

        Parameters:
            target: The device.
            width: Of the head.

        Args:
            output: [items, length, width].
            query: Like `output`.
            key: Like `output`.
            value: Like `output`.
            ctx: Runs it.
        """
        var items, length = query.dim_size(0), query.dim_size(1)
        if length % FOUR != 0:
            raise Error("the length must be a multiple of 4, got ", length)
        comptime if target == "gpu":
            var rows = min(length, max(SCORES // length, 1))
            var scores = ctx.enqueue_create_buffer[F32](rows * length)
            var weights = ctx.enqueue_create_buffer[BF16](rows * length)
            for item in range(items):
                var at = item * length * width
                var keys = TileTensor(key.unsafe_ptr().unsafe_offset(at), row_major(Coord(length, width)))
                var values = TileTensor(value.unsafe_ptr().unsafe_offset(at), row_major(Coord(length, width)))
                for first in range(0, length, rows):
                    var count, from_row = min(rows, length - first), at + first * width
                    var queries = TileTensor(query.unsafe_ptr().unsafe_offset(from_row), row_major(Coord(count, width)))
                    var mixed = TileTensor(output.unsafe_ptr().unsafe_offset(from_row), row_major(Coord(count, width)))
                    var raw = TileTensor(scores.unsafe_ptr(), row_major(Coord(count, length)))
                    var soft = TileTensor(weights.unsafe_ptr(), row_major(Coord(count, length)))
                    matmul(ctx, raw, queries, keys, c_row_major=True, transpose_b=True)
                    ctx.enqueue_function[_softmax_on_gpu[width]](
                        weights.unsafe_ptr(),
                        scores.unsafe_ptr(),
                        Int32(length),
                        grid_dim=(count, 1, 1),
                        block_dim=(THREADS, 1, 1),
                    )
                    matmul(ctx, mixed, soft, values, c_row_major=True)
            _ = scores^
            _ = weights^
        else:
            for item in range(items):
                var at = item * length * width
                _attend_on_cpu[width](
                    output.unsafe_ptr().unsafe_offset(at),
                    query.unsafe_ptr().unsafe_offset(at),
                    key.unsafe_ptr().unsafe_offset(at),
                    value.unsafe_ptr().unsafe_offset(at),
                    length,
                )


def _power[width: Int]() -> Float32:
    """What makes a power of two of a difference of scores."""
    return Float32(LOG2_E / sqrt(Float64(width)))


@always_inline
def _share[width: Int](scores: Pointer[mut=_, Float32, _], length: Int, thread: Int) -> Tuple[Float32, Float32]:
    """The largest score of a thread's share of a row, and the sum of its weights beside it."""
    var largest, total = LOWEST, Float32(0)
    for at in range(thread * FOUR, length, THREADS * FOUR):
        var four = scores.unsafe_load[width=FOUR, alignment=16](at)
        var above = max(largest, four.reduce_max())
        total = total * exp2((largest - above) * _power[width]()) + exp2((four - above) * _power[width]()).reduce_add()
        total += (four * 0).reduce_add()  # NaN of a score that is no number, which a power of two need not be
        largest = above
    return largest, total


@always_inline
def _weigh[
    width: Int
](
    weights: Pointer[mut=True, Scalar[BF16], _],
    scores: Pointer[mut=_, Float32, _],
    length: Int,
    thread: Int,
    largest: Float32,
    total: Float32,
):
    """Weights of a thread's share of a row."""
    var factor = recip(total)
    for at in range(thread * FOUR, length, THREADS * FOUR):
        var four = scores.unsafe_load[width=FOUR, alignment=16](at)
        var soft = exp2((four - largest) * _power[width]()) * factor
        weights.unsafe_store[alignment=8](at, soft.cast[BF16]())


def _softmax_on_gpu[
    width: Int
](weights: Pointer[Scalar[BF16], MutAnyOrigin], scores: Pointer[Float32, MutAnyOrigin], length_of_row: Int32):
    var slots = unsafe_stack_allocation[2 * WARPS, Float32, address_space=AddressSpace.SHARED]()
    var length, thread = Int(length_of_row), Int(thread_idx.x)
    var row = Int(block_idx.x) * length
    var own, total = _share[width](scores.unsafe_offset(row), length, thread)
    var of_warp = warp.max(own)
    if lane_id() == 0:
        slots.unsafe_store(Int(warp_id()), of_warp)
    barrier()
    var largest = LOWEST
    comptime for i in range(WARPS):
        largest = max(largest, slots.unsafe_load(i))
    total = block_sum[WARPS](total * exp2((own - largest) * _power[width]()), slots.unsafe_offset(WARPS))
    _weigh[width](weights.unsafe_offset(row), scores.unsafe_offset(row), length, thread, largest, total)


def _attend_on_cpu[
    width: Int
](
    output: Pointer[mut=True, Scalar[BF16], _],
    query: Pointer[mut=_, Scalar[BF16], _],
    key: Pointer[mut=_, Scalar[BF16], _],
    value: Pointer[mut=_, Scalar[BF16], _],
    length: Int,
):
    """One item by the same arithmetic, for tests."""
    var of_row = alloc(Layout[Float32](count=length))
    var soft = alloc(Layout[Scalar[BF16]](count=length))
    var scores, weights = of_row.unsafe_ptr(), soft.unsafe_ptr()
    for row in range(length):
        for other in range(length):
            var product = Float32(0)
            for i in range(width):
                var of_query = query.unsafe_load(row * width + i).cast[F32]()
                product += of_query * key.unsafe_load(other * width + i).cast[F32]()
            scores.unsafe_store(other, product)
        var largest, total = LOWEST, Float32(0)
        for thread in range(THREADS):
            largest = max(largest, _share[width](scores, length, thread)[0])
        for thread in range(THREADS):
            var own, part = _share[width](scores, length, thread)
            total += part * exp2((own - largest) * _power[width]())
        for thread in range(THREADS):
            _weigh[width](weights, scores, length, thread, largest, total)
        for i in range(width):
            var mixed = Float32(0)
            for other in range(length):
                var weight = weights.unsafe_load(other).cast[F32]()
                mixed += weight * value.unsafe_load(other * width + i).cast[F32]()
            output.unsafe_store(row * width + i, mixed.cast[BF16]())
    dealloc(of_row^)
    dealloc(soft^)
