"""Group normalization and SiLU of a channels-last picture on a GPU, second launch: what was measured is applied.

Every block of threads joins the slabs of `gpu_group_moments`, then normalizes pixels: (x - mean) · scale + offset, SiLU,
rounded once. Twin: `graphs.model.vae_blocks.GroupNorm`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu import barrier, block_idx, grid_dim, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from std.collections import Array
from std.math import ceildiv, exp2, recip
from std.memory import Pointer, unsafe_stack_allocation
from std.memory.alloc import Layout, alloc, dealloc

from .gpu import EACH, F32, Eight, inverse_root, load_eight, store_eight
from .gpu_group_moments import AHEAD, BF16, THREADS, check_groups, slab_of, spread

comptime LOG2_E: Float32 = 1.4426950408889634
comptime BLOCKS = 320
"""Of threads at most, each with all the pixels it comes to: two a multiprocessor on the largest of today's GPUs."""


@extensibility.register("max_zimage.group_norm_applied")
struct GroupNormApplied:
    """Output = norm(x), or silu(norm(x))."""

    @staticmethod
    def execute[
        target: StaticString, channels: Int, groups: Int, slabs: Int, silu: Bool
    ](
        output: OutputTensor[dtype=BF16, rank=4, ...],
        x: InputTensor[dtype=BF16, rank=4, ...],
        moments: InputTensor[dtype=F32, rank=4, ...],
        weight: InputTensor[dtype=BF16, rank=1, ...],
        bias: InputTensor[dtype=BF16, rank=1, ...],
        epsilon: Float32,
        ctx: DeviceContext,
    ) raises:
        """Normalize.

        Parameters:
            target: The device.
            channels: As of `GroupMoments`.
            groups: As of `GroupMoments`.
            slabs: As of `GroupMoments`.
            silu: Whether SiLU follows.

        Args:
            output: [items, rows, columns, channels].
            x: Like `output`.
            moments: [items, slabs, groups, 2] from `GroupMoments`.
            weight: [channels].
            bias: [channels].
            epsilon: Added to the variances.
            ctx: Runs it.
        """
        check_groups[channels, groups]()
        comptime AT_ONCE = THREADS // (channels // EACH)
        var items, pixels = x.dim_size(0), x.dim_size(1) * x.dim_size(2)
        var blocks = min(ceildiv(pixels, AT_ONCE * AHEAD), BLOCKS)
        comptime if target == "gpu":
            ctx.enqueue_function[_applied_on_gpu[channels, groups, slabs, silu]](
                output.unsafe_ptr(),
                x.unsafe_ptr(),
                moments.unsafe_ptr(),
                weight.unsafe_ptr(),
                bias.unsafe_ptr(),
                Int64(pixels),
                epsilon,
                grid_dim=(blocks, items, 1),
                block_dim=(THREADS, 1, 1),
            )
        else:
            for item in range(items):
                var at = item * pixels * channels
                _applied_on_cpu[channels, groups, slabs, silu](
                    output.unsafe_ptr().unsafe_offset(at),
                    x.unsafe_ptr().unsafe_offset(at),
                    moments.unsafe_ptr().unsafe_offset(item * slabs * groups * 2),
                    weight.unsafe_ptr(),
                    bias.unsafe_ptr(),
                    pixels,
                    epsilon,
                )


# The slabs of a picture are joined in two rounds as well; a group's threads sum its slabs between them.


@always_inline
def _mean_of_slabs[groups: Int, slabs: Int](moments: Pointer[mut=_, Float32, _], pixels: Int, thread: Int) -> Float32:
    """A thread's share of its group's mean."""
    var share, total = recip(Float32(pixels)), Float32(0)
    for slab in range(thread // groups, slabs, THREADS // groups):
        var _, count = slab_of[slabs](pixels, slab)
        total += moments.unsafe_load(2 * (slab * groups + thread % groups)) * (Float32(count) * share)
    return total


@always_inline
def _squares_of_slabs[
    channels: Int, groups: Int, slabs: Int
](moments: Pointer[mut=_, Float32, _], mean: Float32, pixels: Int, thread: Int) -> Float32:
    """A thread's share of the squares around its group's mean."""
    var total = Float32(0)
    for slab in range(thread // groups, slabs, THREADS // groups):
        var _, count = slab_of[slabs](pixels, slab)
        var both = moments.unsafe_load[width=2, alignment=8](2 * (slab * groups + thread % groups))
        var away = both[0] - mean
        total += both[1] + away * away * Float32(count * (channels // groups))
    return total


@always_inline
def _shares[groups: Int](slots: Pointer[mut=_, Float32, _, address_space=_], group: Int) -> Float32:
    """Sum of a group's shares, [threads a group][groups]."""
    var total = Float32(0)
    comptime for i in range(THREADS // groups):
        total += slots.unsafe_load(i * groups + group)
    return total


@always_inline
def _normalized[silu: Bool](x: SIMD[BF16, EACH], mean: Eight, scale: Eight, offset: Eight) -> Eight:
    var y = (x.cast[F32]() - mean).fma(scale, offset)
    comptime if not silu:
        return y
    var sigmoid = Eight()
    comptime for i in range(EACH):
        sigmoid[i] = recip(1 + exp2(y[i] * -LOG2_E))
    return y * sigmoid


@always_inline
def _apply[
    channels: Int, silu: Bool
](
    output: Pointer[mut=True, Scalar[BF16], _],
    x: Pointer[mut=_, Scalar[BF16], _],
    mean: Eight,
    scale: Eight,
    offset: Eight,
    first: Int,
    step: Int,
    pixels: Int,
    lane: Int,
):
    """Normalize a lane's channels of each pixel that a thread comes to."""
    var pixel = first
    while pixel + (AHEAD - 1) * step < pixels:
        var ahead = Array[SIMD[BF16, EACH], AHEAD](uninitialized=True)
        comptime for i in range(AHEAD):
            var at = (pixel + i * step) * channels + lane * EACH
            ahead[i] = x.unsafe_load[width=EACH, alignment=2 * EACH](at)
        comptime for i in range(AHEAD):
            var at = (pixel + i * step) * channels + lane * EACH
            store_eight(output, at, _normalized[silu](ahead[i], mean, scale, offset))
        pixel += AHEAD * step
    while pixel < pixels:
        var at = pixel * channels + lane * EACH
        var alone = x.unsafe_load[width=EACH, alignment=2 * EACH](at)
        store_eight(output, at, _normalized[silu](alone, mean, scale, offset))
        pixel += step


def _applied_on_gpu[
    channels: Int, groups: Int, slabs: Int, silu: Bool
](
    output: Pointer[Scalar[BF16], MutAnyOrigin],
    x: Pointer[Scalar[BF16], MutAnyOrigin],
    moments: Pointer[Float32, MutAnyOrigin],
    weight: Pointer[Scalar[BF16], MutAnyOrigin],
    bias: Pointer[Scalar[BF16], MutAnyOrigin],
    pixels_of_x: Int64,
    epsilon: Float32,
):
    comptime LANES = channels // EACH
    comptime AT_ONCE = THREADS // LANES
    comptime SHARERS = THREADS // groups * groups
    var slots = unsafe_stack_allocation[THREADS, Float32, address_space=AddressSpace.SHARED]()
    var means = unsafe_stack_allocation[groups, Float32, address_space=AddressSpace.SHARED]()
    var factors = unsafe_stack_allocation[groups, Float32, address_space=AddressSpace.SHARED]()
    var item, thread, pixels = Int(block_idx.y), Int(thread_idx.x), Int(pixels_of_x)
    var measured = moments.unsafe_offset(item * slabs * groups * 2)
    if thread < SHARERS:
        slots.unsafe_store(thread, _mean_of_slabs[groups, slabs](measured, pixels, thread))
    barrier()
    if thread < groups:
        means.unsafe_store(thread, _shares[groups](slots, thread))
    barrier()
    if thread < SHARERS:
        var mean = means.unsafe_load(thread % groups)
        slots.unsafe_store(thread, _squares_of_slabs[channels, groups, slabs](measured, mean, pixels, thread))
    barrier()
    if thread < groups:
        var count = Float32(pixels) * Float32(channels // groups)
        factors.unsafe_store(thread, inverse_root(_shares[groups](slots, thread) * recip(count), epsilon))
    barrier()
    var lane = thread % LANES
    var mean = spread[channels, groups](means, lane)
    var scale = spread[channels, groups](factors, lane) * load_eight(weight, lane * EACH)
    var at = item * pixels * channels
    _apply[channels, silu](
        output.unsafe_offset(at),
        x.unsafe_offset(at),
        mean,
        scale,
        load_eight(bias, lane * EACH),
        Int(block_idx.x) * AT_ONCE + thread // LANES,
        Int(grid_dim.x) * AT_ONCE,
        pixels,
        lane,
    )


def _applied_on_cpu[
    channels: Int, groups: Int, slabs: Int, silu: Bool
](
    output: Pointer[mut=True, Scalar[BF16], _],
    x: Pointer[mut=_, Scalar[BF16], _],
    moments: Pointer[mut=_, Float32, _],
    weight: Pointer[mut=_, Scalar[BF16], _],
    bias: Pointer[mut=_, Scalar[BF16], _],
    pixels: Int,
    epsilon: Float32,
):
    """A picture by the same arithmetic, a thread after the other, for tests."""
    comptime LANES = channels // EACH
    comptime SHARERS = THREADS // groups * groups
    var memory = alloc(Layout[Float32](count=THREADS + 2 * groups))
    var slots = memory.unsafe_ptr()
    var means = slots.unsafe_offset(THREADS)
    var factors = slots.unsafe_offset(THREADS + groups)
    for thread in range(SHARERS):
        slots.unsafe_store(thread, _mean_of_slabs[groups, slabs](moments, pixels, thread))
    for group in range(groups):
        means.unsafe_store(group, _shares[groups](slots, group))
    for thread in range(SHARERS):
        var mean = means.unsafe_load(thread % groups)
        slots.unsafe_store(thread, _squares_of_slabs[channels, groups, slabs](moments, mean, pixels, thread))
    for group in range(groups):
        var count = Float32(pixels) * Float32(channels // groups)
        factors.unsafe_store(group, inverse_root(_shares[groups](slots, group) * recip(count), epsilon))
    for lane in range(LANES):
        _apply[channels, silu](
            output,
            x,
            spread[channels, groups](means, lane),
            spread[channels, groups](factors, lane) * load_eight(weight, lane * EACH),
            load_eight(bias, lane * EACH),
            0,
            1,
            pixels,
            lane,
        )
    dealloc(memory^)
