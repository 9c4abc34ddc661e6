"""Convolutions over channels-last pictures on a CPU, as products without a matrix of patches.

    rows of the picture -> group norm, SiLU, twice the size, rounding, a border of zeros     a stripe at a time
    stripe -> tiles of 12 neighbouring pixels x 32 outputs, summed over the kernel's taps    in registers
    tiles -> + bias, + a shortcut -> picture

A stripe stays in the cache while all weights pass it, so what a normalization makes is never written to memory. Twin:
`graphs.model.vae_blocks.PlainConv`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc
from std.sys.info import num_physical_cores

from .products import F32, LANES, PART_ROWS, TILE_COLUMNS, Lanes, Part, add_units, per_unit, store_lanes
from .sharing import TASKS_PER_CORE

comptime STRIPE_BYTES = 1 << 20  # what a stripe takes at most, unless one row takes more


@extensibility.register("max_zimage.convolution")
struct Convolution:
    """Output = convolution(silu(norm(x))) + bias + shortcut."""

    @staticmethod
    def execute[
        target: StaticString,
        stride: Int,
        upsampling: Int,
        normed: Bool,
        residual: Bool,
    ](
        output: OutputTensor[dtype=F32, rank=4, ...],
        x: InputTensor[dtype=F32, rank=4, ...],
        norm: InputTensor[dtype=F32, rank=3, ...],
        weight: InputTensor[rank=4, ...],
        bias: InputTensor[dtype=weight.dtype, rank=1, ...],
        shortcut: InputTensor[dtype=F32, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        """Convolve. A kernel of one pixel has no border; one of nine a border of zeros, with a stride of 2 behind only.

        Parameters:
            target: The device.
            stride: Pixels of the picture from one output to the next, 1 or 2.
            upsampling: How often each pixel is repeated in both directions before.
            normed: Whether `norm` and SiLU come first; else `norm` is not read.
            residual: Whether `shortcut` is added; else it is not read.

        Args:
            output: [items, rows, columns, outputs].
            x: [items, rows · stride / upsampling, columns · stride / upsampling, inputs].
            norm: [items, 3, inputs]: mean, scale and offset of each channel.
            weight: [outputs / 32, taps, units, 32 numbers a unit], 1 or 9 taps.
            bias: [outputs].
            shortcut: Like `output`.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.convolution is for CPUs"
        comptime dtype = weight.dtype
        var units, inputs = weight.dim_size(2), x.dim_size(3)
        if ceildiv(inputs, per_unit[dtype]()) != units:
            raise Error("x has ", inputs, " channels and the packed weight ", units * per_unit[dtype]())
        var shape = Shape(
            items=x.dim_size(0),
            rows=x.dim_size(1) * upsampling,
            columns=x.dim_size(2) * upsampling,
            inputs=inputs,
            units=units,
            out_rows=output.dim_size(1),
            out_columns=output.dim_size(2),
            outputs=output.dim_size(3),
            kernel=3 if weight.dim_size(1) == 9 else 1,
        )
        _convolve[dtype, stride, upsampling, normed, residual](
            shape,
            output.unsafe_ptr(),
            x.unsafe_ptr(),
            norm.unsafe_ptr(),
            weight.unsafe_ptr().unsafe_bitcast[UInt32](),
            bias.unsafe_ptr(),
            shortcut.unsafe_ptr(),
        )


@fieldwise_init
struct Shape(ImplicitlyCopyable):
    """Sizes of a convolution; `rows` and `columns` are those of the picture after upsampling."""

    var items: Int
    var rows: Int
    var columns: Int
    var inputs: Int
    var units: Int
    var out_rows: Int
    var out_columns: Int
    var outputs: Int
    var kernel: Int


@no_inline
def _convolve[
    dtype: DType, stride: Int, upsampling: Int, normed: Bool, residual: Bool
](
    shape: Shape,
    output: Pointer[mut=True, Float32, _],
    x: Pointer[mut=_, Float32, _],
    norm: Pointer[mut=_, Float32, _],
    weight: Pointer[mut=_, UInt32, _],
    bias: Pointer[mut=_, Scalar[dtype], _],
    shortcut: Pointer[mut=_, Float32, _],
):
    var before = 1 if shape.kernel == 3 and stride == 1 else 0  # rows and columns of zeros
    var width = (shape.out_columns - 1) * stride + shape.kernel
    var line = width * shape.units
    var height = max(1, STRIPE_BYTES // (4 * line * stride))  # output rows of a stripe
    height = min(height, max(1, ceildiv(shape.out_rows * shape.items, TASKS_PER_CORE * num_physical_cores())))
    var stripes = ceildiv(shape.out_rows, height)
    var lines = (height - 1) * stride + shape.kernel
    # The last tile of a line reads on behind it.
    var size = lines * line + PART_ROWS * 4 * stride * shape.units

    def convolve(task: Int) {imm}:
        var item, first = task // stripes, task % stripes * height
        var last = min(first + height, shape.out_rows)
        var picture = x.unsafe_offset(item * shape.rows // upsampling * (shape.columns // upsampling) * shape.inputs)
        var memory = alloc(Layout[UInt32](count=size))
        var stripe = memory.unsafe_ptr()
        for i in range((last - first - 1) * stride + shape.kernel):
            _prepare_line[dtype, upsampling, normed](
                shape,
                stripe.unsafe_offset(i * line),
                picture,
                norm.unsafe_offset(item * 3 * shape.inputs),
                first * stride + i - before,
                before,
                width,
            )
        for i in range(((last - first - 1) * stride + shape.kernel) * line, size):
            stripe.unsafe_store(i, UInt32(0))
        for panel in range(ceildiv(shape.outputs, TILE_COLUMNS)):
            for row in range(first, last):
                var place = ((item * shape.out_rows + row) * shape.out_columns) * shape.outputs + panel * TILE_COLUMNS
                _convolve_line[dtype, stride, residual](
                    shape,
                    output.unsafe_offset(place),
                    stripe.unsafe_offset((row - first) * stride * line),
                    line,
                    weight.unsafe_offset(panel * shape.kernel * shape.kernel * shape.units * TILE_COLUMNS),
                    bias.unsafe_offset(panel * TILE_COLUMNS),
                    shortcut.unsafe_offset(place) if residual else shortcut,
                    min(TILE_COLUMNS, shape.outputs - panel * TILE_COLUMNS),
                )
        dealloc(memory^)

    sync_parallelize(convolve, shape.items * stripes)


@no_inline
def _prepare_line[
    dtype: DType, upsampling: Int, normed: Bool
](
    shape: Shape,
    line: Pointer[mut=True, UInt32, _],
    picture: Pointer[mut=_, Float32, _],
    norm: Pointer[mut=_, Float32, _],
    row: Int,
    before: Int,
    width: Int,
):
    """Fill one line [width][units] of a stripe from a row of the picture, which may be outside of it."""
    var numbers = shape.units * per_unit[dtype]()
    var target = line.unsafe_bitcast[Scalar[dtype]]()
    var source_columns = shape.columns // upsampling
    for column in range(-before, width - before):
        var pixel = target.unsafe_offset((column + before) * numbers)
        if row < 0 or row >= shape.rows or column < 0 or column >= shape.columns:
            for i in range(numbers):
                pixel.unsafe_store(i, Scalar[dtype](0))
            continue
        var source = picture.unsafe_offset((row // upsampling * source_columns + column // upsampling) * shape.inputs)
        var whole = shape.inputs // LANES * LANES
        for i in range(0, whole, LANES):
            pixel.unsafe_store(i, _entering[normed, LANES](source, norm, i, shape.inputs).cast[dtype]())
        for i in range(whole, shape.inputs):
            pixel.unsafe_store(i, _entering[normed, 1](source, norm, i, shape.inputs).cast[dtype]())
        if shape.inputs < numbers:
            pixel.unsafe_store(shape.inputs, Scalar[dtype](0))


@always_inline
def _entering[
    normed: Bool, width: Int
](source: Pointer[mut=_, Float32, _], norm: Pointer[mut=_, Float32, _], channel: Int, channels: Int) -> SIMD[
    F32, width
]:
    """Some channels of a pixel, normalized and through SiLU if they are to be."""
    var x = source.unsafe_load[width=width](channel)
    comptime if not normed:
        return x
    var mean = norm.unsafe_load[width=width](channel)
    var scale = norm.unsafe_load[width=width](channels + channel)
    var offset = norm.unsafe_load[width=width](2 * channels + channel)
    var y = (x - mean).fma(scale, offset)
    return y / (1 + exp(-y))


@no_inline
def _convolve_line[
    dtype: DType, stride: Int, residual: Bool
](
    shape: Shape,
    output: Pointer[mut=True, Float32, _],
    stripe: Pointer[mut=_, UInt32, _],
    line: Int,
    weight: Pointer[mut=_, UInt32, _],
    bias: Pointer[mut=_, Scalar[dtype], _],
    shortcut: Pointer[mut=_, Float32, _],
    outputs: Int,
):
    """Up to 32 outputs of a row of pixels."""
    for first in range(0, shape.out_columns, PART_ROWS):
        var sums = Part(fill=Lanes(0))
        for row in range(shape.kernel):
            for column in range(shape.kernel):
                add_units[dtype](
                    sums,
                    stripe.unsafe_offset(row * line + (first * stride + column) * shape.units),
                    stride * shape.units,
                    1,
                    weight.unsafe_offset((row * shape.kernel + column) * shape.units * TILE_COLUMNS),
                    shape.units,
                )
        comptime for pixel in range(PART_ROWS):
            if first + pixel < shape.out_columns:
                var place = (first + pixel) * shape.outputs
                comptime for half in range(2):
                    var count = outputs - half * LANES
                    var y = _finished[dtype, residual](
                        sums[2 * pixel + half],
                        bias.unsafe_offset(half * LANES),
                        shortcut.unsafe_offset(place + half * LANES) if residual else shortcut,
                        count,
                    )
                    store_lanes(output.unsafe_offset(place + half * LANES), y, count)


@always_inline
def _finished[
    dtype: DType, residual: Bool
](sums: Lanes, bias: Pointer[mut=_, Scalar[dtype], _], shortcut: Pointer[mut=_, Float32, _], count: Int) -> Lanes:
    """Add bias and shortcut to sixteen sums, of which `count` are read."""
    var y = sums
    if count >= LANES:
        y += bias.unsafe_load[width=LANES](0).cast[F32]()
        comptime if residual:
            y += shortcut.unsafe_load[width=LANES](0)
        return y
    for i in range(count):
        y[i] += bias.unsafe_load(i).cast[F32]()
        comptime if residual:
            y[i] += shortcut.unsafe_load(i)
    return y
