"""Group normalization of a channels-last picture on a GPU, first launch: mean and squares of each group.

A block of threads measures a slab of pixels. A thread keeps to eight neighbouring channels, and measures each around the
first number it meets, so that a large mean takes nothing from the squares. The slabs are joined by `gpu_group_norm`.

Reference: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu import barrier, block_idx, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.memory import AddressSpace
from std.collections import Array
from std.math import ceildiv, recip
from std.memory import Pointer, unsafe_stack_allocation
from std.memory.alloc import Layout, alloc, dealloc

from .gpu import EACH, F32, Eight, load_eight

comptime BF16 = DType.bfloat16
comptime THREADS = 512
"""Of a block: two of them fill a multiprocessor's registers at 64 a thread."""
comptime AHEAD = 4
"""Pixels that a thread asks for before it computes with the first."""


@extensibility.register("max_zimage.group_moments")
struct GroupMoments:
    """Output = mean and sum of squares around it of each slab and group."""

    @staticmethod
    def execute[
        target: StaticString, channels: Int, groups: Int, slabs: Int
    ](output: OutputTensor[dtype=F32, rank=4, ...], x: InputTensor[dtype=BF16, rank=4, ...], ctx: DeviceContext) raises:
        """Measure.

        Parameters:
            target: The device.
            channels: Of the picture, eight times a number that divides `THREADS`.
            groups: Of neighbouring channels, as wide as a power of two.
            slabs: Runs of pixels that are measured apart, each by a block.

        Args:
            output: [items, slabs, groups, 2].
            x: [items, rows, columns, channels].
            ctx: Runs it.
        """
        check_groups[channels, groups]()
        var items, pixels = x.dim_size(0), x.dim_size(1) * x.dim_size(2)
        comptime if target == "gpu":
            ctx.enqueue_function[_moments_on_gpu[channels, groups, slabs]](
                output.unsafe_ptr(),
                x.unsafe_ptr(),
                Int64(pixels),
                grid_dim=(slabs, items, 1),
                block_dim=(THREADS, 1, 1),
            )
        else:
            for item in range(items):
                var picture = x.unsafe_ptr().unsafe_offset(item * pixels * channels)
                for slab in range(slabs):
                    var place = output.unsafe_ptr().unsafe_offset((item * slabs + slab) * groups * 2)
                    _moments_on_cpu[channels, groups, slabs](place, picture, pixels, slab)


def check_groups[channels: Int, groups: Int]():
    comptime assert channels % EACH == 0 and THREADS % (channels // EACH) == 0, "a block must be whole pixels"
    comptime assert channels % groups == 0 and groups <= THREADS, "the channels must be whole groups"
    comptime assert EACH % (channels // groups) == 0 or channels // groups % EACH == 0, "a group must be whole vectors"


# Sums are made in two rounds, of the means and of the squares around the mean that comes out: a thread hands in one
# number for each part of its eight channels that lies in one group.


@always_inline
def _parts[channels: Int, groups: Int]() -> Int:
    """Groups that eight neighbouring channels lie in."""
    return max(1, EACH // (channels // groups))


@always_inline
def slab_of[slabs: Int](pixels: Int, slab: Int) -> Tuple[Int, Int]:
    """First pixel of a slab, and how many it has: as many as all but the last ones, which may have none."""
    var share = ceildiv(pixels, slabs)
    var begin = min(slab * share, pixels)
    return begin, min(share, pixels - begin)


@always_inline
def _measured[
    channels: Int
](x: Pointer[mut=_, Scalar[BF16], _], begin: Int, count: Int, thread: Int) -> Tuple[Int, Eight, Eight]:
    """How many pixels of a slab a thread has, and its channels' means and squares around them."""
    comptime LANES = channels // EACH
    comptime AT_ONCE = THREADS // LANES
    var first, lane = thread // LANES, thread % LANES
    var own = max(0, ceildiv(count - first, AT_ONCE))
    var source = x.unsafe_offset((begin + first) * channels + lane * EACH)
    var about = load_eight(source, 0) if own > 0 else Eight(0)
    var total, squares = Eight(0), Eight(0)
    var done = 0
    while done + AHEAD <= own:
        var ahead = Array[SIMD[BF16, EACH], AHEAD](uninitialized=True)
        comptime for i in range(AHEAD):
            ahead[i] = source.unsafe_load[width=EACH, alignment=2 * EACH]((done + i) * AT_ONCE * channels)
        comptime for i in range(AHEAD):
            var away = ahead[i].cast[F32]() - about
            total += away
            squares = away.fma(away, squares)
        done += AHEAD
    while done < own:
        var away = load_eight(source, done * AT_ONCE * channels) - about
        total += away
        squares = away.fma(away, squares)
        done += 1
    var share = total * recip(Float32(max(own, 1)))
    return own, about + share, squares - total * share


@always_inline
def _hand_in[parts: Int](slots: Pointer[mut=True, Float32, _, address_space=_], thread: Int, numbers: Eight):
    """Put a thread's sums into its slots, [parts][threads]."""
    comptime WIDTH = EACH // parts
    comptime for part in range(parts):
        slots.unsafe_store(part * THREADS + thread, numbers.slice[WIDTH, offset=part * WIDTH]().reduce_add())


@always_inline
def _group_sum[channels: Int, groups: Int](slots: Pointer[mut=_, Float32, _, address_space=_], group: Int) -> Float32:
    """Sum of what all threads have handed in for a group."""
    comptime LANES = channels // EACH
    comptime PARTS = _parts[channels, groups]()
    comptime LANES_A_GROUP = max(1, channels // groups // EACH)
    var first = group % PARTS * THREADS + group // PARTS * LANES_A_GROUP
    var total = Float32(0)
    for row in range(THREADS // LANES):
        comptime for lane in range(LANES_A_GROUP):
            total += slots.unsafe_load(first + row * LANES + lane)
    return total


@always_inline
def spread[channels: Int, groups: Int](numbers: Pointer[mut=_, Float32, _, address_space=_], lane: Int) -> Eight:
    """For each of a lane's channels, the number of its group."""
    comptime WIDTH = channels // groups
    var numbers_of_lane = Eight()
    comptime for i in range(EACH):
        numbers_of_lane[i] = numbers.unsafe_load((lane * EACH + i) // WIDTH)
    return numbers_of_lane


def _moments_on_gpu[
    channels: Int, groups: Int, slabs: Int
](output: Pointer[Float32, MutAnyOrigin], x: Pointer[Scalar[BF16], MutAnyOrigin], pixels_of_x: Int64):
    comptime PARTS = _parts[channels, groups]()
    comptime LANES = channels // EACH
    var slots = unsafe_stack_allocation[PARTS * THREADS, Float32, address_space=AddressSpace.SHARED]()
    var means = unsafe_stack_allocation[groups, Float32, address_space=AddressSpace.SHARED]()
    var slab, item, thread, pixels = Int(block_idx.x), Int(block_idx.y), Int(thread_idx.x), Int(pixels_of_x)
    var begin, count = slab_of[slabs](pixels, slab)
    var picture = x.unsafe_offset(item * pixels * channels)
    var own, mean, squares = _measured[channels](picture, begin, count, thread)
    var place = output.unsafe_offset((item * slabs + slab) * groups * 2)
    var share = recip(Float32(max(count, 1) * (channels // groups)))
    _hand_in[PARTS](slots, thread, mean * (Float32(own) * share))
    barrier()
    if thread < groups:
        means.unsafe_store(thread, _group_sum[channels, groups](slots, thread))
    barrier()
    var away = mean - spread[channels, groups](means, thread % LANES)
    _hand_in[PARTS](slots, thread, squares + away * away * Float32(own))
    barrier()
    if thread < groups:
        place.unsafe_store(2 * thread, means.unsafe_load(thread))
        place.unsafe_store(2 * thread + 1, _group_sum[channels, groups](slots, thread))


def _moments_on_cpu[
    channels: Int, groups: Int, slabs: Int
](output: Pointer[mut=True, Float32, _], x: Pointer[mut=_, Scalar[BF16], _], pixels: Int, slab: Int):
    """A slab by the same arithmetic, a thread after the other, for tests."""
    comptime PARTS = _parts[channels, groups]()
    comptime LANES = channels // EACH
    var memory = alloc(Layout[Float32](count=PARTS * THREADS + groups))
    var slots = memory.unsafe_ptr()
    var means = slots.unsafe_offset(PARTS * THREADS)
    var begin, count = slab_of[slabs](pixels, slab)
    var share = recip(Float32(max(count, 1) * (channels // groups)))
    for thread in range(THREADS):
        var own, mean, _ = _measured[channels](x, begin, count, thread)
        _hand_in[PARTS](slots, thread, mean * (Float32(own) * share))
    for group in range(groups):
        means.unsafe_store(group, _group_sum[channels, groups](slots, group))
    for thread in range(THREADS):
        var own, mean, squares = _measured[channels](x, begin, count, thread)
        var away = mean - spread[channels, groups](means, thread % LANES)
        _hand_in[PARTS](slots, thread, squares + away * away * Float32(own))
    for group in range(groups):
        output.unsafe_store(2 * group, means.unsafe_load(group))
        output.unsafe_store(2 * group + 1, _group_sum[channels, groups](slots, group))
    dealloc(memory^)
