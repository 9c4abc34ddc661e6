"""Linear layers on a CPU, with weights packed at load, in float32 or bfloat16.

    panels of the input's rows -> one tile of sums in registers -> epilogue -> the output's rows

A panel of weights stays in the second-level cache while the rows pass it. Twins: `graphs.linear.Linear`,
`graphs.linear.GatedLinear` and `graphs.linear.GeluLinear`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc

from .products import (
    LANES,
    TILE_COLUMNS,
    TILE_ROWS,
    pack_rows,
    pack_wide_rows,
    per_unit,
    store_tile,
    tile_products,
    wide_products,
    widens,
)
from .sharing import PRODUCTS, share_out, tasks_for


@extensibility.register("max_zimage.linear")
struct Linear:
    """Output = x weightᵀ."""

    @staticmethod
    def execute[
        target: StaticString, widened: Bool
    ](
        output: OutputTensor[rank=3, ...],
        x: InputTensor[dtype=output.dtype, rank=3, ...],
        weight: InputTensor[dtype=output.dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Multiply.

        Parameters:
            target: Where.
            widened: Whether bfloat16 is multiplied as float32 where the processor could multiply it as it is.

        Args:
            output: [items, length, outputs].
            x: [items, length, inputs].
            weight: [outputs / 32, units, 32 numbers a unit]: panels of 32 outputs, the last one
                filled up with zeros, in units along the inputs.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.linear is for CPUs"
        _multiply[gated=False, widened=widened](output, x, weight)


@extensibility.register("max_zimage.gated_linear")
struct GatedLinear:
    """Output = silu(x gateᵀ) · (x upᵀ)."""

    @staticmethod
    def execute[
        target: StaticString, widened: Bool
    ](
        output: OutputTensor[rank=3, ...],
        x: InputTensor[dtype=output.dtype, rank=3, ...],
        weight: InputTensor[dtype=output.dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Multiply by both and gate.

        Parameters:
            target: Where.
            widened: As in `Linear`.

        Args:
            output: [items, length, outputs].
            x: [items, length, inputs].
            weight: [outputs / 16, units, 32 numbers a unit]: panels of 16 gates and their 16 ups, the
                last one filled up with zeros, in units along the inputs.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.gated_linear is for CPUs"
        _multiply[gated=True, widened=widened](output, x, weight)


@extensibility.register("max_zimage.gelu_linear")
struct GeluLinear:
    """Output = gelu(x gateᵀ) · (x upᵀ), by the approximation with tanh."""

    @staticmethod
    def execute[
        target: StaticString, widened: Bool
    ](
        output: OutputTensor[rank=3, ...],
        x: InputTensor[dtype=output.dtype, rank=3, ...],
        weight: InputTensor[dtype=output.dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Multiply by both and gate; arguments are those of `GatedLinear`.

        Parameters:
            target: Where.
            widened: As in `Linear`.

        Args:
            output: [items, length, outputs].
            x: [items, length, inputs].
            weight: [outputs / 16, units, 32 numbers a unit].
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.gelu_linear is for CPUs"
        _multiply[gated=True, widened=widened, gelu=True](output, x, weight)


def _multiply[
    gated: Bool, widened: Bool, gelu: Bool = False
](
    output: OutputTensor[rank=3, ...],
    x: InputTensor[dtype=output.dtype, rank=3, ...],
    weight: InputTensor[dtype=output.dtype, rank=3, ...],
) raises:
    comptime dtype = output.dtype
    var units = weight.dim_size(1)
    if x.dim_size(2) != units * per_unit[dtype]():
        raise Error("x has ", x.dim_size(2), " inputs and the packed weight ", units * per_unit[dtype]())
    _multiply_panels[dtype, gated, widens[dtype, widened](), gelu](
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
    dtype: DType, gated: Bool, wide: Bool, gelu: Bool
](
    target: Pointer[mut=True, Scalar[dtype], _],
    source: Pointer[mut=_, UInt32, _],
    columns: Pointer[mut=_, UInt32, _],
    rows: Int,
    units: Int,
    outputs: Int,
    column_panels: Int,
):
    comptime width = LANES if gated else TILE_COLUMNS  # outputs of a tile
    var row_panels = ceildiv(rows, TILE_ROWS)
    var words = units * (2 if wide else 1) * TILE_ROWS  # of a panel of rows
    var packed = alloc(Layout[UInt32](count=row_panels * words))
    var panels = packed.unsafe_ptr()

    def pack(panel: Int) {imm}:
        var first = panel * TILE_ROWS
        var some, place = source.unsafe_offset(first * units), panels.unsafe_offset(panel * words)
        comptime if wide:
            pack_wide_rows(some, place, min(TILE_ROWS, rows - first), units)
        else:
            pack_rows(some, place, min(TILE_ROWS, rows - first), units)

    share_out(pack, row_panels, rows * units * per_unit[dtype]())
    var tiles = row_panels * column_panels
    var tasks = tasks_for(tiles)

    def multiply(task: Int) {imm}:
        for tile in range(task * tiles // tasks, (task + 1) * tiles // tasks):
            var row, column = tile % row_panels * TILE_ROWS, tile // row_panels
            _tile[dtype, gated, wide, gelu](
                target.unsafe_offset(row * outputs + column * width),
                panels.unsafe_offset(row // TILE_ROWS * words),
                columns.unsafe_offset(column * units * TILE_COLUMNS),
                units,
                outputs,
                min(TILE_ROWS, rows - row),
                outputs - column * width,
            )

    var products = rows * units * per_unit[dtype]() * column_panels * TILE_COLUMNS
    share_out(multiply, tasks, products // PRODUCTS)
    dealloc(packed^)


@no_inline
def _tile[
    dtype: DType, gated: Bool, wide: Bool, gelu: Bool
](
    target: Pointer[mut=True, Scalar[dtype], _],
    rows: Pointer[mut=_, UInt32, _],
    columns: Pointer[mut=_, UInt32, _],
    units: Int,
    stride: Int,
    height: Int,
    width: Int,
):
    """One tile, of which `height` rows and `width` outputs exist, or all where there are more."""
    comptime if wide:
        store_tile[gated, gelu](target, wide_products(rows, columns, units), stride, height, width)
    else:
        store_tile[gated, gelu](target, tile_products[dtype](rows, columns, units), stride, height, width)
