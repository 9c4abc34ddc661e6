"""Linear layers on a CPU in bfloat16, 32 x 32 sums at a time in the tiles of AMX, with the packed weights of
`kernels.linear`.

    panels of the input's rows -> one square of sums in tiles -> epilogue -> the output's rows

Where the processor that is compiled for has no such tiles the square is summed in vectors: right, and slower than
`kernels.linear`. Twins: `graphs.linear.Linear` and `graphs.linear.GatedLinear`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc

from .products import BF16, LANES, TILE_COLUMNS, gated_lanes, store_lanes
from .sharing import PRODUCTS, share_out, tasks_for
from .tiles import HAS_TILES, SETTINGS, SIDE, STEP_UNITS, begin_tiles, end_tiles, pack_square, square_products


@extensibility.register("max_zimage.tile_linear")
struct TileLinear:
    """Output = x weightᵀ."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[dtype=BF16, rank=3, ...],
        x: InputTensor[dtype=BF16, rank=3, ...],
        weight: InputTensor[dtype=BF16, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Multiply.

        Parameters:
            target: Where.

        Args:
            output: [items, length, outputs].
            x: [items, length, inputs], inputs divisible by 32.
            weight: [outputs / 32, inputs / 2, 64]: as `max_zimage.linear` has it.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.tile_linear is for CPUs"
        _multiply[gated=False](output, x, weight)


@extensibility.register("max_zimage.tile_gated_linear")
struct TileGatedLinear:
    """Output = silu(x gateᵀ) · (x upᵀ)."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[dtype=BF16, rank=3, ...],
        x: InputTensor[dtype=BF16, rank=3, ...],
        weight: InputTensor[dtype=BF16, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Multiply by both and gate.

        Parameters:
            target: Where.

        Args:
            output: [items, length, outputs].
            x: [items, length, inputs], inputs divisible by 32.
            weight: [outputs / 16, inputs / 2, 64]: as `max_zimage.gated_linear` has it.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.tile_gated_linear is for CPUs"
        _multiply[gated=True](output, x, weight)


def _multiply[
    gated: Bool
](
    output: OutputTensor[dtype=BF16, rank=3, ...],
    x: InputTensor[dtype=BF16, rank=3, ...],
    weight: InputTensor[dtype=BF16, rank=3, ...],
) raises:
    var units = weight.dim_size(1)
    if x.dim_size(2) != 2 * units:
        raise Error("x has ", x.dim_size(2), " inputs and the packed weight ", 2 * units)
    if units % STEP_UNITS != 0:
        raise Error("x must have inputs divisible by ", 2 * STEP_UNITS, ", got ", 2 * units)
    _multiply_panels[gated](
        output.unsafe_ptr(),
        x.unsafe_ptr().unsafe_bitcast[UInt32](),
        weight.unsafe_ptr().unsafe_bitcast[UInt32](),
        x.dim_size(0) * x.dim_size(1),
        units,
        output.dim_size(2),
        weight.dim_size(0),
    )


@no_inline
def _multiply_panels[
    gated: Bool
](
    target: Pointer[mut=True, Scalar[BF16], _],
    source: Pointer[mut=_, UInt32, _],
    columns: Pointer[mut=_, UInt32, _],
    rows: Int,
    units: Int,
    outputs: Int,
    column_panels: Int,
):
    var row_panels = ceildiv(rows, SIDE)
    var packed = alloc(Layout[UInt32](count=row_panels * SIDE * units))
    var panels = packed.unsafe_ptr()

    def pack(panel: Int) {imm}:
        var first = panel * SIDE
        pack_square(source.unsafe_offset(first * units), panels.unsafe_offset(first * units), rows - first, units)

    share_out(pack, row_panels, 2 * rows * units)
    var squares = row_panels * column_panels
    var tasks = tasks_for(squares)

    def multiply(task: Int) {imm}:
        var begin, end = task * squares // tasks, (task + 1) * squares // tasks
        multiply_squares[gated, HAS_TILES](target, panels, columns, rows, units, outputs, begin, end)

    share_out(multiply, tasks, 2 * rows * units * column_panels * TILE_COLUMNS // PRODUCTS)
    dealloc(packed^)


@no_inline
def multiply_squares[
    gated: Bool, in_tiles: Bool
](
    target: Pointer[mut=True, Scalar[BF16], _],
    panels: Pointer[mut=_, UInt32, _],
    columns: Pointer[mut=_, UInt32, _],
    rows: Int,
    units: Int,
    outputs: Int,
    begin: Int,
    end: Int,
):
    """Some squares of an output on this thread, all rows of a panel of columns before the next.

    Parameters:
        gated: Whether a panel's left half gates its right one.
        in_tiles: Whether by AMX.

    Args:
        target: [rows][outputs].
        panels: From `pack_square`.
        columns: The packed weight.
        rows: Of the output.
        units: In a row of the input.
        outputs: In a row of the output.
        begin: The first square.
        end: What the last one is followed by.
    """
    comptime width = LANES if gated else TILE_COLUMNS  # outputs of a square
    var row_panels = ceildiv(rows, SIDE)
    var memory = alloc(Layout[UInt32](count=SIDE * SIDE + SETTINGS))
    var sums = memory.unsafe_ptr().unsafe_bitcast[Float32]()
    comptime if in_tiles:
        begin_tiles(memory.unsafe_ptr().unsafe_offset(SIDE * SIDE))
    for square in range(begin, end):
        var row, column = square % row_panels * SIDE, square // row_panels
        square_products[in_tiles](
            panels.unsafe_offset(row * units),
            columns.unsafe_offset(column * units * TILE_COLUMNS),
            sums,
            units // STEP_UNITS,
        )
        for each in range(min(SIDE, rows - row)):
            var left = sums.unsafe_load[width=LANES](each * SIDE)
            var right = sums.unsafe_load[width=LANES](each * SIDE + LANES)
            var place = target.unsafe_offset((row + each) * outputs + column * width)
            comptime if gated:
                store_lanes(place, gated_lanes[False](left, right), outputs - column * width)
            else:
                store_lanes(place, left, outputs - column * width)
                store_lanes(place.unsafe_offset(LANES), right, outputs - column * width - LANES)
    comptime if in_tiles:
        end_tiles()
    dealloc(memory^)
