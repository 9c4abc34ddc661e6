"""`kernels.tile_linear` with AMX's instructions whatever the processor has, as a library for Python."""

from kernels.products import BF16
from kernels.tile_linear import multiply_squares
from kernels.tiles import SIDE, pack_square
from std.math import ceildiv
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc


def multiply[
    gated: Bool, in_tiles: Bool
](
    target: Pointer[mut=True, Scalar[BF16], _],
    source: Pointer[mut=True, UInt32, _],
    columns: Pointer[mut=True, UInt32, _],
    rows: Int,
    units: Int,
    outputs: Int,
    column_panels: Int,
):
    var row_panels = ceildiv(rows, SIDE)
    var packed = alloc(Layout[UInt32](count=row_panels * SIDE * units))
    var panels = packed.unsafe_ptr()
    for panel in range(row_panels):
        var first = panel * SIDE
        pack_square(source.unsafe_offset(first * units), panels.unsafe_offset(first * units), rows - first, units)
    var squares = row_panels * column_panels
    # As two tasks would have them.
    multiply_squares[gated, in_tiles](target, panels, columns, rows, units, outputs, 0, squares // 2)
    multiply_squares[gated, in_tiles](target, panels, columns, rows, units, outputs, squares // 2, squares)
    dealloc(packed^)


@export("plain_in_tiles")
def plain_in_tiles(
    target: Pointer[mut=True, Scalar[BF16], MutAnyOrigin],
    source: Pointer[mut=True, UInt32, MutAnyOrigin],
    columns: Pointer[mut=True, UInt32, MutAnyOrigin],
    rows: Int,
    units: Int,
    outputs: Int,
    column_panels: Int,
) abi("C"):
    multiply[False, True](target, source, columns, rows, units, outputs, column_panels)


@export("plain_in_vectors")
def plain_in_vectors(
    target: Pointer[mut=True, Scalar[BF16], MutAnyOrigin],
    source: Pointer[mut=True, UInt32, MutAnyOrigin],
    columns: Pointer[mut=True, UInt32, MutAnyOrigin],
    rows: Int,
    units: Int,
    outputs: Int,
    column_panels: Int,
) abi("C"):
    multiply[False, False](target, source, columns, rows, units, outputs, column_panels)


@export("gated_in_tiles")
def gated_in_tiles(
    target: Pointer[mut=True, Scalar[BF16], MutAnyOrigin],
    source: Pointer[mut=True, UInt32, MutAnyOrigin],
    columns: Pointer[mut=True, UInt32, MutAnyOrigin],
    rows: Int,
    units: Int,
    outputs: Int,
    column_panels: Int,
) abi("C"):
    multiply[True, True](target, source, columns, rows, units, outputs, column_panels)


@export("gated_in_vectors")
def gated_in_vectors(
    target: Pointer[mut=True, Scalar[BF16], MutAnyOrigin],
    source: Pointer[mut=True, UInt32, MutAnyOrigin],
    columns: Pointer[mut=True, UInt32, MutAnyOrigin],
    rows: Int,
    units: Int,
    outputs: Int,
    column_panels: Int,
) abi("C"):
    multiply[True, False](target, source, columns, rows, units, outputs, column_panels)
