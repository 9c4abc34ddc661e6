"""A square of 32 x 32 sums in the tiles of AMX, which sum products of bfloat16 in float32, and the same in vectors.

    rows      [steps][32][16 units]      of 32 inputs a step: two tiles, one below the other
    columns   [units][32]                as `kernels.products` has them: two tiles a step, side by side
    sums      [32][32]                   four tiles, which stay in registers over the whole axis

A tile has 16 rows of 64 bytes. One of columns is sixteen pairs of inputs of sixteen outputs, so that packed weights are
what the instruction wants. Of the eight tiles four hold sums, two rows and two columns: four loads and four products a
step. MAX's compiler knows no operation for them; the instructions are given as text, and whoever calls asks for them to
be there. The vectors' arithmetic is `kernels.products`'s: sums of the same products in another order.

Source: Intel's Software Developer's Manual, volume 2, LDTILECFG, TILELOADD, TDPBF16PS and TILESTORED.
"""

from std.collections import Array
from std.memory import Pointer
from std.sys import CompilationTarget, inlined_assembly

from .products import BF16, F32, LANES, TILE_COLUMNS, U32, Lanes, Units, add_products

comptime HAS_TILES = CompilationTarget._has_feature["amx-bf16"]()
"""Whether the processor that is compiled for multiplies tiles of bfloat16 numbers."""
comptime SIDE = 32
comptime STEP_UNITS = 16  # of a row of a tile
comptime SETTINGS = 16  # words that say how large each tile is
comptime _GROUP = 4  # rows that vectors sum at a time


@always_inline
def begin_tiles(settings: Pointer[mut=True, UInt32, _]):
    """Give all eight tiles 16 rows of 64 bytes, on this thread, until `end_tiles`.

    Args:
        settings: Room for `SETTINGS` words.
    """
    var bytes = settings.unsafe_bitcast[UInt8]()
    for i in range(4 * SETTINGS):
        bytes.unsafe_store(i, UInt8(0))
    bytes.unsafe_store(0, UInt8(1))  # palette
    for tile in range(8):
        bytes.unsafe_store(16 + 2 * tile, UInt8(64))  # bytes of a row
        bytes.unsafe_store(48 + tile, UInt8(16))  # rows
    inlined_assembly["ldtilecfg ($0)", NoneType, constraints="r,~{memory}", has_side_effect=True](Int(settings))


@always_inline
def end_tiles():
    """Let the system keep nothing of the tiles any more when it changes threads."""
    inlined_assembly["tilerelease", NoneType, constraints="~{memory}", has_side_effect=True]()


@always_inline
def square_products[
    in_tiles: Bool
](
    rows: Pointer[mut=_, UInt32, _],
    columns: Pointer[mut=_, UInt32, _],
    sums: Pointer[mut=True, Float32, _],
    steps: Int,
):
    """Sum a square over its panels of rows and columns.

    Parameters:
        in_tiles: Whether by AMX, between `begin_tiles` and `end_tiles`.

    Args:
        rows: [steps][32][16 units].
        columns: [units][32].
        sums: [32][32], written.
        steps: Of 16 units.
    """
    comptime if in_tiles:
        _sum_tiles(Int(rows), Int(columns), Int(sums), steps)
    else:
        comptime for group in range(SIDE // _GROUP):
            _sum_vectors(
                rows.unsafe_offset(group * _GROUP * STEP_UNITS),
                columns,
                sums.unsafe_offset(group * _GROUP * SIDE),
                steps,
            )


@always_inline
def _sum_tiles(rows: Int, columns: Int, sums: Int, steps: Int):
    """By addresses: sums are tiles 0 and 1 above 2 and 3, rows 4 above 5, columns 6 beside 7."""
    inlined_assembly[
        "tilezero %tmm0\ntilezero %tmm1\ntilezero %tmm2\ntilezero %tmm3",
        NoneType,
        constraints="~{memory}",
        has_side_effect=True,
    ]()
    comptime row_bytes, column_bytes = 4 * STEP_UNITS, 4 * TILE_COLUMNS
    for step in range(steps):
        inlined_assembly[
            (
                "tileloadd ($0,$1,1), %tmm4\n"
                "tileloadd ($2,$3,1), %tmm6\n"
                "tileloadd 64($2,$3,1), %tmm7\n"
                "tdpbf16ps %tmm6, %tmm4, %tmm0\n"
                "tileloadd 1024($0,$1,1), %tmm5\n"
                "tdpbf16ps %tmm7, %tmm4, %tmm1\n"
                "tdpbf16ps %tmm6, %tmm5, %tmm2\n"
                "tdpbf16ps %tmm7, %tmm5, %tmm3"
            ),
            NoneType,
            constraints="r,r,r,r,~{memory}",
            has_side_effect=True,
        ](rows + step * SIDE * row_bytes, row_bytes, columns + step * STEP_UNITS * column_bytes, column_bytes)
    inlined_assembly[
        (
            "tilestored %tmm0, ($0,$1,1)\n"
            "tilestored %tmm1, 64($0,$1,1)\n"
            "tilestored %tmm2, 2048($0,$1,1)\n"
            "tilestored %tmm3, 2112($0,$1,1)"
        ),
        NoneType,
        constraints="r,r,~{memory}",
        has_side_effect=True,
    ](sums, 4 * SIDE)


@always_inline
def _sum_vectors(
    rows: Pointer[mut=_, UInt32, _],
    columns: Pointer[mut=_, UInt32, _],
    place: Pointer[mut=True, Float32, _],
    steps: Int,
):
    """Four rows of a square."""
    var sums = Array[Lanes, 2 * _GROUP](fill=Lanes(0))
    for unit in range(steps * STEP_UNITS):
        var left = columns.unsafe_load[width=LANES](unit * TILE_COLUMNS)
        var right = columns.unsafe_load[width=LANES](unit * TILE_COLUMNS + LANES)
        var first = unit // STEP_UNITS * SIDE * STEP_UNITS + unit % STEP_UNITS
        comptime for row in range(_GROUP):
            var a = Units(rows.unsafe_load(first + row * STEP_UNITS))
            sums[2 * row] = add_products[BF16](sums[2 * row], a, left)
            sums[2 * row + 1] = add_products[BF16](sums[2 * row + 1], a, right)
    comptime for row in range(_GROUP):
        place.unsafe_store(row * SIDE, sums[2 * row])
        place.unsafe_store(row * SIDE + LANES, sums[2 * row + 1])


def pack_square(source: Pointer[mut=_, UInt32, _], panel: Pointer[mut=True, UInt32, _], rows: Int, units: Int):
    """Fill one panel; rows that are not there are zero.

    Args:
        source: [rows][units].
        panel: [units / 16][32][16].
        rows: How many there are; 32 where there are more.
        units: Units in a row, divisible by 16.
    """
    for step in range(units // STEP_UNITS):
        for row in range(SIDE):
            var some = Units(0)
            if row < rows:
                some = source.unsafe_load[width=LANES](row * units + step * STEP_UNITS)
            panel.unsafe_store((step * SIDE + row) * STEP_UNITS, some)
