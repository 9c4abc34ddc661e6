"""Linear layers on a CPU whose weights are codes of eight or four bits with scales, packed at load.

    rows rounded to whole numbers, a panel at a time -> one tile of sums in registers -> epilogue -> the output's rows

Twins: `graphs.linear.QuantizedLinear` says what they compute.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc

from .codes import PER_UNIT, ROW_WORDS, code_products, middle, pack_codes
from .products import F32, LANES, TILE_COLUMNS, TILE_ROWS, store_tile
from .sharing import PRODUCTS, share_out, tasks_for


@extensibility.register("max_zimage.quantized_linear")
struct QuantizedLinear:
    """Output = x weightᵀ, x rounded too."""

    @staticmethod
    def execute[
        target: StaticString, bits: Int, group: Int, gated: Bool
    ](
        output: OutputTensor[rank=3, ...],
        x: InputTensor[dtype=output.dtype, rank=3, ...],
        weight: InputTensor[dtype=DType.uint8, rank=3, ...],
        scales: InputTensor[dtype=F32, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Multiply.

        Parameters:
            target: The device.
            bits: Of a code, 8 or 4.
            group: Inputs that share a scale; divisible by 16, and by 8 units where codes have four bits.
            gated: Whether each panel has 16 gates and their 16 ups: output = silu(x gateᵀ) · (x upᵀ).

        Args:
            output: [items, length, outputs].
            x: [items, length, inputs].
            weight: [panels, units, 128 codes], or of four bits [panels, units / 2, 128 bytes]: a panel is 32
                outputs side by side, a unit four inputs. The low half of a byte belongs to the first of two units.
            scales: [panels, groups, 32].
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.quantized_linear is for CPUs"
        comptime assert group % (2 * LANES) == 0, "a group must be whole vectors"
        var inputs, groups = x.dim_size(2), scales.dim_size(1)
        if inputs != groups * group or weight.dim_size(1) * 8 // bits * PER_UNIT != inputs:
            raise Error("x has ", inputs, " inputs, the weight ", weight.dim_size(1) * 8 // bits * PER_UNIT)
        _multiply[output.dtype, bits, group, gated](
            output.unsafe_ptr(),
            x.unsafe_ptr(),
            weight.unsafe_ptr().unsafe_bitcast[UInt32](),
            scales.unsafe_ptr(),
            x.dim_size(0) * x.dim_size(1),
            groups,
            output.dim_size(2),
            weight.dim_size(0),
        )


@no_inline
def _multiply[
    dtype: DType, bits: Int, group: Int, gated: Bool
](
    target: Pointer[mut=True, Scalar[dtype], _],
    source: Pointer[mut=_, Scalar[dtype], _],
    columns: Pointer[mut=_, UInt32, _],
    column_scales: Pointer[mut=_, Float32, _],
    rows: Int,
    groups: Int,
    outputs: Int,
    column_panels: Int,
):
    comptime width = LANES if gated else TILE_COLUMNS  # outputs of a tile
    var inputs = groups * group
    var words = inputs // PER_UNIT * ROW_WORDS  # of a panel of rows
    var column_words = inputs // PER_UNIT * TILE_COLUMNS * bits // 8
    var row_panels = ceildiv(rows, TILE_ROWS)
    var packed = alloc(Layout[UInt32](count=row_panels * words))
    var scales_memory = alloc(Layout[Float32](count=row_panels * groups * TILE_ROWS))
    var starts_memory = alloc(Layout[Int32](count=row_panels * groups * TILE_ROWS))
    var panels, scales, starts = packed.unsafe_ptr(), scales_memory.unsafe_ptr(), starts_memory.unsafe_ptr()

    def pack(panel: Int) {imm}:
        var first = panel * TILE_ROWS
        pack_codes[dtype, group, middle[bits]()](
            source.unsafe_offset(first * inputs),
            panels.unsafe_offset(panel * words),
            scales.unsafe_offset(first * groups),
            starts.unsafe_offset(first * groups),
            min(TILE_ROWS, rows - first),
            inputs,
        )

    share_out(pack, row_panels, 2 * rows * inputs)
    var tiles = row_panels * column_panels
    var tasks = tasks_for(tiles)

    def multiply(task: Int) {imm}:
        for tile in range(task * tiles // tasks, (task + 1) * tiles // tasks):
            var row, column = tile % row_panels * TILE_ROWS, tile // row_panels
            _tile[dtype, bits, group, gated](
                target.unsafe_offset(row * outputs + column * width),
                panels.unsafe_offset(row // TILE_ROWS * words),
                scales.unsafe_offset(row * groups),
                starts.unsafe_offset(row * groups),
                columns.unsafe_offset(column * column_words),
                column_scales.unsafe_offset(column * groups * TILE_COLUMNS),
                groups,
                outputs,
                min(TILE_ROWS, rows - row),
                outputs - column * width,
            )

    share_out(multiply, tasks, rows * inputs * column_panels * TILE_COLUMNS // PRODUCTS)
    dealloc(packed^)
    dealloc(scales_memory^)
    dealloc(starts_memory^)


@no_inline
def _tile[
    dtype: DType, bits: Int, group: Int, gated: Bool
](
    target: Pointer[mut=True, Scalar[dtype], _],
    rows: Pointer[mut=_, UInt32, _],
    row_scales: Pointer[mut=_, Float32, _],
    starts: Pointer[mut=_, Int32, _],
    columns: Pointer[mut=_, UInt32, _],
    column_scales: Pointer[mut=_, Float32, _],
    groups: Int,
    stride: Int,
    height: Int,
    width: Int,
):
    """One tile, of which `height` rows and `width` outputs exist, or all where there are more."""
    var sums = code_products[bits, group](rows, row_scales, starts, columns, column_scales, groups)
    store_tile[gated](target, sums, stride, height, width)
