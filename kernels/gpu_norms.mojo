"""What stands between the products of a modulated block, on a GPU: one pass where plain operations take five.

    out  = residual + gate · norm(branch)
    next = norm(out) · scale

A block of threads has a row and keeps it in registers between its two norms. `gate` and `scale` are rows of a table, one
for all items or for each, that holds the norms' own weights too, see `graphs.model.conditioning`. They are counted from a row
that the host names, so that all blocks of a model read one table, where a slice for each would be a launch of its own.
Twin: `graphs.model.blocks.ModulatedBlock`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu import block_idx, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from std.collections import Array
from std.memory import Pointer, unsafe_stack_allocation

from .gpu import EACH, F32, Eight, block_sum, inverse_root, load_eight, store_eight


@extensibility.register("max_zimage.gated_norms")
struct GatedNorms:
    """Out = residual + gate · norm(branch), next = norm(out) · scale."""

    @staticmethod
    def execute[
        target: StaticString, width: Int, threads: Int, gate: Int, scale: Int
    ](
        output: OutputTensor[rank=3, ...],
        next: OutputTensor[dtype=output.dtype, rank=3, ...],
        branch: InputTensor[dtype=output.dtype, rank=3, ...],
        residual: InputTensor[dtype=output.dtype, rank=3, ...],
        table: InputTensor[dtype=F32, rank=3, ...],
        first: Int32,
        epsilon: Float32,
        ctx: DeviceContext,
    ) raises:
        """Add a branch and prepare the next one.

        Parameters:
            target: The device.
            width: Numbers of a token, a multiple of 8 `threads`.
            threads: That share a token, a multiple of 32.
            gate: The row that multiplies the branch, counted from `first`.
            scale: The row that multiplies the second norm, likewise; behind the table's end its last row does.

        Args:
            output: [items, length, width].
            next: Like `output`.
            branch: Like `output`.
            residual: Like `output`.
            table: [rows, 1 or items, width].
            first: A row of the table.
            epsilon: Added to the mean squares.
            ctx: Runs it.
        """
        comptime assert threads % 32 == 0 and width % (EACH * threads) == 0, "a token must be whole vectors of threads"
        var rows = branch.dim_size(0) * branch.dim_size(1)
        var length = branch.dim_size(1)
        var stride = width if table.dim_size(1) > 1 else 0
        var gates = table.unsafe_ptr().unsafe_offset((Int(first) + gate) * table.dim_size(1) * width)
        var last = min(Int(first) + scale, table.dim_size(0) - 1)
        var scales = table.unsafe_ptr().unsafe_offset(last * table.dim_size(1) * width)
        comptime if target == "gpu":
            ctx.enqueue_function[_gated_on_gpu[output.dtype, width, threads]](
                output.unsafe_ptr(),
                next.unsafe_ptr(),
                branch.unsafe_ptr(),
                residual.unsafe_ptr(),
                gates,
                scales,
                Int32(length),
                Int32(stride),
                epsilon,
                grid_dim=(rows, 1, 1),
                block_dim=(threads, 1, 1),
            )
        else:
            for row in range(rows):
                var added = output.unsafe_ptr().unsafe_offset(row * width)
                _gated_on_cpu[output.dtype, width](
                    added,
                    branch.unsafe_ptr().unsafe_offset(row * width),
                    residual.unsafe_ptr().unsafe_offset(row * width),
                    gates.unsafe_offset(row // length * stride),
                    next.unsafe_ptr().unsafe_offset(row * width),
                    scales.unsafe_offset(row // length * stride),
                    epsilon,
                )


@extensibility.register("max_zimage.scaled_norm")
struct ScaledNorm:
    """Output = norm(x) · scale, what a block's first branch takes where no block came before."""

    @staticmethod
    def execute[
        target: StaticString, width: Int, threads: Int, scale: Int
    ](
        output: OutputTensor[rank=3, ...],
        x: InputTensor[dtype=output.dtype, rank=3, ...],
        table: InputTensor[dtype=F32, rank=3, ...],
        first: Int32,
        epsilon: Float32,
        ctx: DeviceContext,
    ) raises:
        """Normalize and scale.

        Parameters:
            target: The device.
            width: Numbers of a token, a multiple of 8 `threads`.
            threads: That share a token, a multiple of 32.
            scale: The row that multiplies the norm, counted from `first`.

        Args:
            output: [items, length, width].
            x: Like `output`.
            table: [rows, 1 or items, width].
            first: A row of the table.
            epsilon: Added to the mean squares.
            ctx: Runs it.
        """
        comptime assert threads % 32 == 0 and width % (EACH * threads) == 0, "a token must be whole vectors of threads"
        var rows = x.dim_size(0) * x.dim_size(1)
        var length = x.dim_size(1)
        var stride = width if table.dim_size(1) > 1 else 0
        var scales = table.unsafe_ptr().unsafe_offset((Int(first) + scale) * table.dim_size(1) * width)
        comptime if target == "gpu":
            ctx.enqueue_function[_scaled_on_gpu[output.dtype, width, threads]](
                output.unsafe_ptr(),
                x.unsafe_ptr(),
                scales,
                Int32(length),
                Int32(stride),
                epsilon,
                grid_dim=(rows, 1, 1),
                block_dim=(threads, 1, 1),
            )
        else:
            for row in range(rows):
                var source = x.unsafe_ptr().unsafe_offset(row * width)
                var place = output.unsafe_ptr().unsafe_offset(row * width)
                var own = scales.unsafe_offset(row // length * stride)
                var factor = _factor_on_cpu[output.dtype, width](source, epsilon)
                for i in range(width):
                    var normed = source.unsafe_load(i).cast[F32]() * factor * own.unsafe_load(i)
                    place.unsafe_store(i, normed.cast[output.dtype]())


def _gated_on_gpu[
    dtype: DType, width: Int, threads: Int
](
    output: Pointer[Scalar[dtype], MutAnyOrigin],
    next: Pointer[Scalar[dtype], MutAnyOrigin],
    branch: Pointer[Scalar[dtype], MutAnyOrigin],
    residual: Pointer[Scalar[dtype], MutAnyOrigin],
    gates: Pointer[Float32, MutAnyOrigin],
    scales: Pointer[Float32, MutAnyOrigin],
    length: Int32,
    stride: Int32,
    epsilon: Float32,
):
    comptime VECTORS = width // (threads * EACH)
    comptime WARPS = threads // 32
    comptime SHARE = Float32(1.0 / Float64(width))  # a constant to multiply with: a division is a call
    var slots = unsafe_stack_allocation[2 * WARPS, Float32, address_space=AddressSpace.SHARED]()
    var row = Int(block_idx.x) * width
    var item = Int(block_idx.x) // Int(length) * Int(stride)
    var kept = Array[Eight, VECTORS](uninitialized=True)
    var squares = Float32(0)
    comptime for i in range(VECTORS):
        kept[i] = load_eight(branch, row + (i * threads + Int(thread_idx.x)) * EACH)
        squares += (kept[i] * kept[i]).reduce_add()
    var factor = inverse_root(block_sum[WARPS](squares, slots) * SHARE, epsilon)
    squares = 0
    comptime for i in range(VECTORS):
        var at = (i * threads + Int(thread_idx.x)) * EACH
        var x = load_eight(residual, row + at) + kept[i] * factor * load_eight(gates, item + at)
        store_eight(output, row + at, x)
        kept[i] = x
        squares += (x * x).reduce_add()
    factor = inverse_root(block_sum[WARPS](squares, slots.unsafe_offset(WARPS)) * SHARE, epsilon)
    comptime for i in range(VECTORS):
        var at = (i * threads + Int(thread_idx.x)) * EACH
        store_eight(next, row + at, kept[i] * factor * load_eight(scales, item + at))


def _scaled_on_gpu[
    dtype: DType, width: Int, threads: Int
](
    output: Pointer[Scalar[dtype], MutAnyOrigin],
    x: Pointer[Scalar[dtype], MutAnyOrigin],
    scales: Pointer[Float32, MutAnyOrigin],
    length: Int32,
    stride: Int32,
    epsilon: Float32,
):
    comptime VECTORS = width // (threads * EACH)
    comptime WARPS = threads // 32
    comptime SHARE = Float32(1.0 / Float64(width))
    var slots = unsafe_stack_allocation[WARPS, Float32, address_space=AddressSpace.SHARED]()
    var row = Int(block_idx.x) * width
    var item = Int(block_idx.x) // Int(length) * Int(stride)
    var kept = Array[Eight, VECTORS](uninitialized=True)
    var squares = Float32(0)
    comptime for i in range(VECTORS):
        kept[i] = load_eight(x, row + (i * threads + Int(thread_idx.x)) * EACH)
        squares += (kept[i] * kept[i]).reduce_add()
    var factor = inverse_root(block_sum[WARPS](squares, slots) * SHARE, epsilon)
    comptime for i in range(VECTORS):
        var at = (i * threads + Int(thread_idx.x)) * EACH
        store_eight(output, row + at, kept[i] * factor * load_eight(scales, item + at))


def _gated_on_cpu[
    dtype: DType, width: Int
](
    output: Pointer[mut=True, Scalar[dtype], _],
    branch: Pointer[mut=_, Scalar[dtype], _],
    residual: Pointer[mut=_, Scalar[dtype], _],
    gates: Pointer[mut=_, Float32, _],
    next: Pointer[mut=True, Scalar[dtype], _],
    scales: Pointer[mut=_, Float32, _],
    epsilon: Float32,
):
    """One token by the same arithmetic, for tests: the second norm is that of the sum before it is rounded."""
    var kept = Array[Float32, width](uninitialized=True)
    var factor, squares = _factor_on_cpu[dtype, width](branch, epsilon), Float32(0)
    for i in range(width):
        var x = branch.unsafe_load(i).cast[F32]() * factor * gates.unsafe_load(i)
        kept[i] = residual.unsafe_load(i).cast[F32]() + x
        output.unsafe_store(i, kept[i].cast[dtype]())
        squares += kept[i] * kept[i]
    factor = inverse_root(squares * Float32(1.0 / Float64(width)), epsilon)
    for i in range(width):
        next.unsafe_store(i, (kept[i] * factor * scales.unsafe_load(i)).cast[dtype]())


def _factor_on_cpu[dtype: DType, width: Int](x: Pointer[mut=_, Scalar[dtype], _], epsilon: Float32) -> Float32:
    var squares = Float32(0)
    for i in range(width):
        var number = x.unsafe_load(i).cast[F32]()
        squares += number * number
    return inverse_root(squares * Float32(1.0 / Float64(width)), epsilon)
