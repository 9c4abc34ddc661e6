"""What group normalization subtracts, multiplies with and adds, for each channel of a channels-last picture.

    a row of one channel: its mean, then the squares around it     the row is still in the cache
    a group: means and squares of its rows and channels joined     in float64

A convolution applies it on the way in. Twin: `graphs.model.vae_blocks.GroupNorm`.

Reference: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import nan, sqrt
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc

from .products import F32, LANES
from .sharing import share_out

comptime LIMIT: Float64 = 1e16
"""As `graphs.overflow.LIMIT`."""


@extensibility.register("max_zimage.group_norm")
struct GroupNorm:
    """Output = mean, weight / deviation, bias."""

    @staticmethod
    def execute[
        target: StaticString, groups: Int
    ](
        output: OutputTensor[dtype=F32, rank=3, ...],
        x: InputTensor[dtype=F32, rank=4, ...],
        weight: InputTensor[rank=1, ...],
        bias: InputTensor[dtype=weight.dtype, rank=1, ...],
        epsilon: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Measure.

        Parameters:
            target: The device.
            groups: Of neighbouring channels.

        Args:
            output: [items, 3, channels].
            x: [items, rows, columns, channels].
            weight: [channels].
            bias: [channels].
            epsilon: [1], added to the variance.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.group_norm is for CPUs"
        if x.dim_size(3) % groups != 0:
            raise Error(x.dim_size(3), " channels are not ", groups, " groups")
        _measure[weight.dtype](
            output.unsafe_ptr(),
            x.unsafe_ptr(),
            weight.unsafe_ptr(),
            bias.unsafe_ptr(),
            x.dim_size(0),
            x.dim_size(1),
            x.dim_size(2),
            x.dim_size(3),
            groups,
            epsilon.unsafe_ptr().unsafe_load(0),
        )


@no_inline
def _measure[
    dtype: DType
](
    output: Pointer[mut=True, Float32, _],
    x: Pointer[mut=_, Float32, _],
    weight: Pointer[mut=_, Scalar[dtype], _],
    bias: Pointer[mut=_, Scalar[dtype], _],
    items: Int,
    rows: Int,
    columns: Int,
    channels: Int,
    groups: Int,
    epsilon: Float32,
):
    var memory = alloc(Layout[Float32](count=items * rows * 2 * channels))
    var measured = memory.unsafe_ptr()  # [items · rows][2][channels]: means, sums of squares around them

    def measure_row(row: Int) {imm}:
        var source = x.unsafe_offset(row * columns * channels)
        var place = measured.unsafe_offset(row * 2 * channels)
        var whole = channels // LANES * LANES
        for channel in range(0, whole, LANES):
            _measure_row[LANES](source.unsafe_offset(channel), place.unsafe_offset(channel), columns, channels)
        for channel in range(whole, channels):
            _measure_row[1](source.unsafe_offset(channel), place.unsafe_offset(channel), columns, channels)

    share_out(measure_row, items * rows, items * rows * columns * channels)

    def join(task: Int) {imm}:
        var item, width = task // groups, channels // groups
        var first = task % groups * width
        var source = measured.unsafe_offset(item * rows * 2 * channels)
        var mean, squares = Float64(0), Float64(0)
        for row in range(rows):
            for channel in range(first, first + width):
                mean += source.unsafe_load(row * 2 * channels + channel).cast[DType.float64]()
        mean /= Float64(rows * width)
        for row in range(rows):
            for channel in range(first, first + width):
                var away = source.unsafe_load(row * 2 * channels + channel).cast[DType.float64]() - mean
                squares += source.unsafe_load((row * 2 + 1) * channels + channel).cast[DType.float64]()
                squares += Float64(columns) * away * away
        var deviation = sqrt(squares / Float64(rows * columns * width) + epsilon.cast[DType.float64]())
        if not deviation < LIMIT:  # not of NaN either: little but the bias would be left of the group, and look finite
            deviation = nan[DType.float64]()
        var place = output.unsafe_offset(item * 3 * channels)
        for channel in range(first, first + width):
            var scale = weight.unsafe_load(channel).cast[DType.float64]() / deviation
            place.unsafe_store(channel, mean.cast[F32]())
            place.unsafe_store(channels + channel, scale.cast[F32]())
            place.unsafe_store(2 * channels + channel, bias.unsafe_load(channel).cast[F32]())

    share_out(join, items * groups, 2 * items * rows * channels)
    dealloc(memory^)


@always_inline
def _measure_row[
    width: Int
](source: Pointer[mut=_, Float32, _], place: Pointer[mut=True, Float32, _], columns: Int, channels: Int):
    """Mean of some channels of a row, and the sum of squares around it."""
    var total = SIMD[F32, width](0)
    for column in range(columns):
        total += source.unsafe_load[width=width](column * channels)
    var about = total / Float32(columns)
    var rest, squares = SIMD[F32, width](0), SIMD[F32, width](0)
    for column in range(columns):
        var away = source.unsafe_load[width=width](column * channels) - about
        rest += away
        squares = away.fma(away, squares)
    rest /= Float32(columns)  # what the first sum lost to rounding
    place.unsafe_store(0, about + rest)
    place.unsafe_store(channels, squares - rest * rest * Float32(columns))
