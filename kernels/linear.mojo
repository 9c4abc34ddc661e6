"""Linear layers in bfloat16 on a CPU, with weights packed at load.

    panels of the input's rows -> one tile of sums in registers -> epilogue -> the output's rows

A panel of weights stays in the second-level cache while the rows pass it. Twins: `graphs.linear.Linear` and
`graphs.linear.GatedLinear`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc
from std.sys.info import num_physical_cores

from .products import BF16, LANES, TILE_COLUMNS, TILE_ROWS, pack_rows, tile_products

comptime TASKS_PER_CORE = 4  # a core that another program takes away holds up a part of the work only


@extensibility.register("max_zimage.linear")
struct Linear:
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

        Args:
            output: [items, length, outputs].
            x: [items, length, inputs].
            weight: [outputs / 32, inputs / 2, 64]: panels of 32 outputs, in pairs along the inputs.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.linear is for CPUs"
        _multiply[gated=False](output, x, weight)


@extensibility.register("max_zimage.gated_linear")
struct GatedLinear:
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

        Args:
            output: [items, length, outputs].
            x: [items, length, inputs].
            weight: [outputs / 16, inputs / 2, 64]: panels of 16 gates and their 16 ups, in pairs along the inputs.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.gated_linear is for CPUs"
        _multiply[gated=True](output, x, weight)


def _multiply[
    gated: Bool
](
    output: OutputTensor[dtype=BF16, rank=3, ...],
    x: InputTensor[dtype=BF16, rank=3, ...],
    weight: InputTensor[dtype=BF16, rank=3, ...],
) raises:
    comptime width = LANES if gated else TILE_COLUMNS  # outputs of a tile
    var rows, pairs, outputs = x.dim_size(0) * x.dim_size(1), weight.dim_size(1), output.dim_size(2)
    var row_panels, column_panels = ceildiv(rows, TILE_ROWS), weight.dim_size(0)
    if x.dim_size(2) != 2 * pairs:
        raise Error("x has ", x.dim_size(2), " inputs and the packed weight ", 2 * pairs)
    var source, columns, target = x.unsafe_ptr().unsafe_bitcast[UInt32](), weight.unsafe_ptr(), output.unsafe_ptr()
    var packed = alloc(Layout[UInt32](count=row_panels * pairs * TILE_ROWS))
    var panels = packed.unsafe_ptr()

    def pack(panel: Int) {imm}:
        var first = panel * TILE_ROWS
        pack_rows(
            source.unsafe_offset(first * pairs),
            panels.unsafe_offset(first * pairs),
            min(TILE_ROWS, rows - first),
            pairs,
        )

    sync_parallelize(pack, row_panels)
    var tiles = row_panels * column_panels
    var tasks = min(tiles, TASKS_PER_CORE * num_physical_cores())

    def multiply(task: Int) {imm}:
        for tile in range(task * tiles // tasks, (task + 1) * tiles // tasks):
            var row, column = tile % row_panels * TILE_ROWS, tile // row_panels
            _tile[gated](
                target.unsafe_offset(row * outputs + column * width),
                panels.unsafe_offset(row * pairs),
                columns.unsafe_offset(column * pairs * 2 * TILE_COLUMNS),
                pairs,
                outputs,
                min(TILE_ROWS, rows - row),
            )

    sync_parallelize(multiply, tasks)
    dealloc(packed^)


@no_inline
def _tile[
    gated: Bool
](
    target: Pointer[mut=True, Scalar[BF16], _],
    rows: Pointer[mut=_, UInt32, _],
    columns: Pointer[mut=_, Scalar[BF16], _],
    pairs: Int,
    stride: Int,
    height: Int,
):
    """One tile, of which `height` rows exist."""
    var sums = tile_products(rows, columns, pairs)
    comptime for row in range(TILE_ROWS):
        if row < height:
            comptime if gated:
                var gate = sums[2 * row]
                var gated_sums = gate / (1 + exp(-gate)) * sums[2 * row + 1]
                target.unsafe_store(row * stride, gated_sums.cast[BF16]())
            else:
                target.unsafe_store(row * stride, sums[2 * row].cast[BF16]())
                target.unsafe_store(row * stride + LANES, sums[2 * row + 1].cast[BF16]())
