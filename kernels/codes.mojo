"""Products of numbers that are rounded to whole ones, on a CPU: the tile in registers, and its rows' rounding.

A weight is a code less the middle of all codes (128 of eight bits, 8 of four), times the scale of its group: some
neighbouring inputs of one output. The rows are rounded to -127 to 127 with a scale of their own for each group. Within
a group sums are whole numbers, whatever adds them up; groups are joined in float32.

    rows     [panels][units][12]         a unit is four whole numbers of eight bits (AVX-512 VNNI, `vpdpbusd`)
             [panels][inputs][12]        or float32, which holds these sums exactly, on processors without it
    columns  [panels][units][32]         a unit is four codes of eight bits, of four bits two neighbouring units

One instruction multiplies sixteen units by sixteen others and adds four products to a lane, four times what float32
does. On other processors the codes become float32 numbers in registers, and twelve rows share each.
"""

from std.collections import Array
from std.memory import Pointer, bitcast
from std.sys import CompilationTarget, llvm_intrinsic

from .products import F32, LANES, PART_ROWS, TILE_COLUMNS, TILE_ROWS, Lanes, Tile, Units

comptime S8 = DType.int8
comptime S32 = DType.int32
comptime PER_UNIT = 4
comptime LARGEST: Float32 = 127
comptime Integers = SIMD[S32, LANES]
comptime VNNI = CompilationTarget._has_feature["avx512vnni"]()
comptime ROW_WORDS = TILE_ROWS if VNNI else PER_UNIT * TILE_ROWS
"""Words of 32 bits that a panel of rows has for a unit."""


def middle[bits: Int]() -> Int:
    """The code that stands for zero."""
    return 1 << (bits - 1)


@always_inline
def code_products[
    bits: Int, group: Int
](
    rows: Pointer[mut=_, UInt32, _],
    row_scales: Pointer[mut=_, Float32, _],
    starts: Pointer[mut=_, Int32, _],
    columns: Pointer[mut=_, UInt32, _],
    column_scales: Pointer[mut=_, Float32, _],
    groups: Int,
) -> Tile:
    """Sum a tile over its panels of rows and columns.

    Parameters:
        bits: Of a code, 8 or 4.
        group: Inputs of a group.

    Args:
        rows: From `pack_codes`, as `row_scales` and `starts` are, [groups][12].
        row_scales: Of the rows' groups.
        starts: What takes the middle of the codes off.
        columns: Codes.
        column_scales: [groups][32].
        groups: How many.
    """
    comptime units = group // PER_UNIT
    var tile = Tile(fill=Lanes(0))
    for index in range(groups):
        var left = column_scales.unsafe_load[width=LANES](index * TILE_COLUMNS)
        var right = column_scales.unsafe_load[width=LANES](index * TILE_COLUMNS + LANES)
        var some_rows = rows.unsafe_offset(index * units * ROW_WORDS)
        var some_columns = columns.unsafe_offset(index * units * TILE_COLUMNS * bits // 8)
        var first = index * TILE_ROWS
        comptime if VNNI:
            _add_whole[bits, units](
                tile, some_rows, row_scales.unsafe_offset(first), starts.unsafe_offset(first), some_columns, left, right
            )
        else:
            _add_wide[bits, units](
                tile, some_rows, row_scales.unsafe_offset(first), starts.unsafe_offset(first), some_columns, left, right
            )
    return tile^


@always_inline
def _add_whole[
    bits: Int, units: Int
](
    mut tile: Tile,
    rows: Pointer[mut=_, UInt32, _],
    row_scales: Pointer[mut=_, Float32, _],
    starts: Pointer[mut=_, Int32, _],
    columns: Pointer[mut=_, UInt32, _],
    left_scales: Lanes,
    right_scales: Lanes,
):
    """Add a group by AVX-512 VNNI."""
    var sums = Array[Integers, 2 * TILE_ROWS](fill=Integers(0))
    comptime for row in range(TILE_ROWS):
        var start = Integers(starts.unsafe_load(row))
        sums[2 * row] = start
        sums[2 * row + 1] = start
    comptime halves = 8 // bits
    for stored in range(units // halves):
        var left = columns.unsafe_load[width=LANES](stored * TILE_COLUMNS)
        var right = columns.unsafe_load[width=LANES](stored * TILE_COLUMNS + LANES)
        comptime for half in range(halves):
            var some_left, some_right = _half[bits, half](left), _half[bits, half](right)
            var unit = (stored * halves + half) * TILE_ROWS
            comptime for row in range(TILE_ROWS):
                var a = Units(rows.unsafe_load(unit + row))
                sums[2 * row] = _dot(sums[2 * row], some_left, a)
                sums[2 * row + 1] = _dot(sums[2 * row + 1], some_right, a)
    comptime for row in range(TILE_ROWS):
        var scale = Lanes(row_scales.unsafe_load(row))
        tile[2 * row] = sums[2 * row].cast[F32]().fma(left_scales * scale, tile[2 * row])
        tile[2 * row + 1] = sums[2 * row + 1].cast[F32]().fma(right_scales * scale, tile[2 * row + 1])


@always_inline
def _add_wide[
    bits: Int, units: Int
](
    mut tile: Tile,
    rows: Pointer[mut=_, UInt32, _],
    row_scales: Pointer[mut=_, Float32, _],
    starts: Pointer[mut=_, Int32, _],
    columns: Pointer[mut=_, UInt32, _],
    left_scales: Lanes,
    right_scales: Lanes,
):
    """Add a group in float32."""
    var numbers = rows.unsafe_bitcast[Float32]()
    comptime halves = 8 // bits
    comptime for part in range(TILE_ROWS // PART_ROWS):
        comptime first = part * PART_ROWS
        var sums = Array[Lanes, 2 * PART_ROWS](fill=Lanes(0))
        comptime for row in range(PART_ROWS):
            var start = Lanes(starts.unsafe_load(first + row).cast[F32]())
            sums[2 * row] = start
            sums[2 * row + 1] = start
        for stored in range(units // halves):
            var left = columns.unsafe_load[width=LANES](stored * TILE_COLUMNS)
            var right = columns.unsafe_load[width=LANES](stored * TILE_COLUMNS + LANES)
            comptime for half in range(halves):
                var some_left, some_right = _half[bits, half](left), _half[bits, half](right)
                comptime for place in range(PER_UNIT):
                    var a = ((some_left >> Units(UInt32(8 * place))) & 255).cast[F32]()
                    var b = ((some_right >> Units(UInt32(8 * place))) & 255).cast[F32]()
                    var input = ((stored * halves + half) * PER_UNIT + place) * TILE_ROWS
                    comptime for row in range(PART_ROWS):
                        var number = Lanes(numbers.unsafe_load(input + first + row))
                        sums[2 * row] = a.fma(number, sums[2 * row])
                        sums[2 * row + 1] = b.fma(number, sums[2 * row + 1])
        comptime for row in range(PART_ROWS):
            var scale, to = Lanes(row_scales.unsafe_load(first + row)), 2 * (first + row)
            tile[to] = sums[2 * row].fma(left_scales * scale, tile[to])
            tile[to + 1] = sums[2 * row + 1].fma(right_scales * scale, tile[to + 1])


@always_inline
def _half[bits: Int, half: Int](stored: Units) -> Units:
    """The units of eight bits among what is stored."""
    comptime if bits == 8:
        return stored
    return (stored >> Units(UInt32(4 * half))) & 0x0F0F0F0F


@always_inline
def _dot(sums: Integers, codes: Units, numbers: Units) -> Integers:
    """Sums plus the four products of each lane."""
    comptime if VNNI:
        return llvm_intrinsic["llvm.x86.avx512.vpdpbusd.512", Integers](
            sums, bitcast[DType.uint8, PER_UNIT * LANES](codes), bitcast[S8, PER_UNIT * LANES](numbers)
        )
    return sums


def pack_codes[
    dtype: DType, group: Int, zero: Int
](
    source: Pointer[mut=_, Scalar[dtype], _],
    panel: Pointer[mut=True, UInt32, _],
    scales: Pointer[mut=True, Float32, _],
    starts: Pointer[mut=True, Int32, _],
    rows: Int,
    inputs: Int,
):
    """Round one panel of rows; rows that are not there are zero.

    A group with a number that is not finite gets a scale that is none either, so that the sums tell.

    Parameters:
        dtype: Of the numbers.
        group: Inputs of a group.
        zero: The code of the weights that stands for zero.

    Args:
        source: [rows][inputs].
        panel: [units][12], or [inputs][12] of float32.
        scales: [groups][12].
        starts: [groups][12], minus the middle code times the sum of the rounded numbers.
        rows: How many there are, at most 12.
        inputs: Of a row.
    """
    comptime groups_vectors = group // LANES
    for row in range(TILE_ROWS):
        for index in range(inputs // group):
            var place = index * TILE_ROWS + row
            if row >= rows:
                scales.unsafe_store(place, Float32(0))
                starts.unsafe_store(place, Int32(0))
                for vector in range(groups_vectors):
                    _store_codes(panel, row, index * group + vector * LANES, Integers(0))
                continue
            var first = source.unsafe_offset(row * inputs + index * group)
            var largest, gone = Lanes(0), Lanes(0)
            comptime for vector in range(groups_vectors):
                var numbers = first.unsafe_load[width=LANES](vector * LANES).cast[F32]()
                largest = max(largest, abs(numbers))
                gone += numbers * 0
            var scale = largest.reduce_max() / LARGEST + gone.reduce_add()
            var factor = 1 / scale if scale > 0 and scale < Float32.MAX_FINITE else Float32(0)
            var total = Integers(0)
            comptime for vector in range(groups_vectors):
                var numbers = first.unsafe_load[width=LANES](vector * LANES).cast[F32]()
                var whole = _rounded(numbers * factor)
                total += whole
                _store_codes(panel, row, index * group + vector * LANES, whole)
            scales.unsafe_store(place, scale)
            starts.unsafe_store(place, Int32(-zero) * total.reduce_add())


@always_inline
def _rounded(numbers: Lanes) -> Integers:
    """The nearest whole number, ties to even."""
    return llvm_intrinsic["llvm.roundeven", Lanes](numbers).clamp(-LARGEST, LARGEST).cast[S32]()


@always_inline
def _store_codes(panel: Pointer[mut=True, UInt32, _], row: Int, input: Int, whole: Integers):
    """Sixteen numbers of a row."""
    comptime if VNNI:
        var units = bitcast[DType.uint32, LANES // PER_UNIT](whole.cast[S8]())
        comptime for i in range(LANES // PER_UNIT):
            panel.unsafe_store((input // PER_UNIT + i) * TILE_ROWS + row, units[i])
    else:
        var numbers = bitcast[DType.uint32, LANES](whole.cast[F32]())
        comptime for i in range(LANES):
            panel.unsafe_store((input + i) * TILE_ROWS + row, numbers[i])
