"""Linear layers on a CPU with low-rank parts beside the weight, each item by parts of its own.

    panel of an item's rows -> packed -> times the item's down, packed            a panel at a time
    rows by the weight's panel + what down made by the item's up -> epilogue      a tile in registers

Items without parts get the bits of `max_zimage.linear` and `max_zimage.gated_linear`: their tiles are summed as there.
A panel of weights stays in the second-level cache while the rows of all items pass it.

References: LoRA (arXiv 2106.09685); Punica (arXiv 2310.18547), which multiplies rows by adapters of their own likewise.
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
    panel_words,
    per_unit,
    put_number,
    store_tile,
    sums_of,
    widens,
)
from .sharing import PRODUCTS, share_out, tasks_for


@extensibility.register("max_zimage.adapted_linear")
struct AdaptedLinear:
    """Output = x weightᵀ + (x downᵀ) upᵀ, or silu(gate) · up of that."""

    @staticmethod
    def execute[
        target: StaticString, gated: Bool, widened: Bool
    ](
        output: OutputTensor[rank=3, ...],
        x: InputTensor[dtype=output.dtype, rank=3, ...],
        weight: InputTensor[dtype=output.dtype, rank=3, ...],
        down: InputTensor[dtype=output.dtype, rank=4, ...],
        up: InputTensor[dtype=output.dtype, rank=4, ...],
        which: InputTensor[dtype=DType.int32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Multiply.

        Parameters:
            target: The device.
            gated: Whether every panel of the weight and of up has 16 gates, then their 16 ups.
            widened: Whether bfloat16 is multiplied as float32 where the processor could multiply it as it is.

        Args:
            output: [items, length, outputs].
            x: [items, length, inputs].
            weight: [outputs / 32, or / 16 where gated, units, 32 numbers a unit], as `max_zimage.linear` or
                `max_zimage.gated_linear` has it.
            down: [parts, rank / 32, units, 32 numbers a unit]: matrices [rank, inputs], each packed likewise.
            up: [parts, panels of the weight, units of the rank, 32 numbers a unit], each packed as the weight is.
            which: [items], the parts of each item; below 0 for none.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.adapted_linear is for CPUs"
        comptime dtype = output.dtype
        var units, rank = weight.dim_size(1), down.dim_size(1) * TILE_COLUMNS
        if x.dim_size(2) != units * per_unit[dtype]() or down.dim_size(2) != units:
            raise Error("x has ", x.dim_size(2), " inputs, and the packed weight, or down, has others")
        if up.dim_size(1) != weight.dim_size(0) or up.dim_size(2) * per_unit[dtype]() != rank:
            raise Error("up has not the weight's outputs, or not down's rank of ", rank)
        if up.dim_size(0) != down.dim_size(0) or which.dim_size(0) != x.dim_size(0):
            raise Error("there are not as many downs as ups, or not as many choices as items")
        for item in range(which.dim_size(0)):
            if Int(which.unsafe_ptr().unsafe_load(item)) >= down.dim_size(0):
                raise Error("item ", item, " names parts beyond the ", down.dim_size(0), " that there are")
        _multiply[dtype, gated, widens[dtype, widened]()](
            output.unsafe_ptr(),
            x.unsafe_ptr().unsafe_bitcast[UInt32](),
            weight.unsafe_ptr().unsafe_bitcast[UInt32](),
            down.unsafe_ptr().unsafe_bitcast[UInt32](),
            up.unsafe_ptr().unsafe_bitcast[UInt32](),
            which.unsafe_ptr(),
            x.dim_size(0),
            x.dim_size(1),
            units,
            output.dim_size(2),
            weight.dim_size(0),
            down.dim_size(1),
        )


@no_inline
def _multiply[
    dtype: DType, gated: Bool, wide: Bool
](
    target: Pointer[mut=True, Scalar[dtype], _],
    source: Pointer[mut=_, UInt32, _],
    weight: Pointer[mut=_, UInt32, _],
    down: Pointer[mut=_, UInt32, _],
    up: Pointer[mut=_, UInt32, _],
    which: Pointer[mut=_, Int32, _],
    items: Int,
    rows: Int,
    units: Int,
    outputs: Int,
    weight_panels: Int,
    rank_panels: Int,
):
    """All items; `rows` and `units` are those of one, panels are counted in columns."""
    comptime width = LANES if gated else TILE_COLUMNS  # outputs of a tile
    var each = ceildiv(rows, TILE_ROWS)  # panels of rows of an item
    var count = items * each
    var rank = rank_panels * TILE_COLUMNS
    var rank_units = rank // per_unit[dtype]()
    var words = panel_words[dtype, wide](units * per_unit[dtype]())
    var narrow_words = panel_words[dtype, wide](rank)
    var packed_memory = alloc(Layout[UInt32](count=count * words))
    var narrow_memory = alloc(Layout[UInt32](count=count * narrow_words))
    var packed, narrow = packed_memory.unsafe_ptr(), narrow_memory.unsafe_ptr()

    def prepare(panel: Int) {imm}:
        var item, first = panel // each, panel % each * TILE_ROWS
        var some, place = source.unsafe_offset((item * rows + first) * units), packed.unsafe_offset(panel * words)
        comptime if wide:
            pack_wide_rows(some, place, min(TILE_ROWS, rows - first), units)
        else:
            pack_rows(some, place, min(TILE_ROWS, rows - first), units)
        var own = Int(which.unsafe_load(item))
        if own >= 0:
            var columns = down.unsafe_offset(own * rank_panels * units * TILE_COLUMNS)
            _narrow[dtype, wide](narrow.unsafe_offset(panel * narrow_words), place, columns, units, rank_panels)

    var numbers = items * rows * units * per_unit[dtype]()
    share_out(prepare, count, numbers + numbers * rank // PRODUCTS)
    var tiles = count * weight_panels
    var tasks = tasks_for(tiles)

    def multiply(task: Int) {imm}:
        for tile in range(task * tiles // tasks, (task + 1) * tiles // tasks):
            var panel, column = tile % count, tile // count
            var item, row = panel // each, panel % each * TILE_ROWS
            var own = Int(which.unsafe_load(item))
            _tile[dtype, gated, wide](
                target.unsafe_offset((item * rows + row) * outputs + column * width),
                packed.unsafe_offset(panel * words),
                weight.unsafe_offset(column * units * TILE_COLUMNS),
                narrow.unsafe_offset(panel * narrow_words),
                up.unsafe_offset((max(own, 0) * weight_panels + column) * rank_units * TILE_COLUMNS),
                units,
                rank_units if own >= 0 else 0,
                outputs,
                min(TILE_ROWS, rows - row),
                outputs - column * width,
            )

    share_out(multiply, tasks, (numbers + items * rows * rank) * weight_panels * TILE_COLUMNS // PRODUCTS)
    dealloc(packed_memory^)
    dealloc(narrow_memory^)


@no_inline
def _narrow[
    dtype: DType, wide: Bool
](
    target: Pointer[mut=True, UInt32, _],
    rows: Pointer[mut=_, UInt32, _],
    down: Pointer[mut=_, UInt32, _],
    units: Int,
    rank_panels: Int,
):
    """A panel of rows times down, rounded to the dtype and packed as rows are."""
    for panel in range(rank_panels):
        var sums = sums_of[dtype, wide](rows, down.unsafe_offset(panel * units * TILE_COLUMNS), units)
        comptime for row in range(TILE_ROWS):
            comptime for half in range(2):
                var numbers = sums[2 * row + half].cast[dtype]()
                for i in range(LANES):
                    put_number[dtype, wide](target, row, panel * TILE_COLUMNS + half * LANES + i, numbers[i])


@no_inline
def _tile[
    dtype: DType, gated: Bool, wide: Bool
](
    target: Pointer[mut=True, Scalar[dtype], _],
    rows: Pointer[mut=_, UInt32, _],
    weight: Pointer[mut=_, UInt32, _],
    narrow: Pointer[mut=_, UInt32, _],
    up: Pointer[mut=_, UInt32, _],
    units: Int,
    rank_units: Int,
    stride: Int,
    height: Int,
    width: Int,
):
    """One tile, of which `height` rows and `width` outputs exist, or all where there are more."""
    var sums = sums_of[dtype, wide](rows, weight, units)
    if rank_units > 0:
        var more = sums_of[dtype, wide](narrow, up, rank_units)
        comptime for i in range(2 * TILE_ROWS):
            sums[i] = sums[i] + more[i]
    store_tile[gated](target, sums, stride, height, width)
