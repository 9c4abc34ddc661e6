"""Products of matrices on a CPU, summed in float32: the tile that stays in registers, and its operands.

Operands come in units of 32 bits along the summed axis: one float32 number, or a pair of bfloat16 numbers. One
instruction multiplies sixteen pairs by sixteen others and adds both products of a pair to a float32 lane (AVX-512 BF16,
`vdpbf16ps`).

    rows     [panels][units][12]        broadcast to all lanes
    columns  [panels][units][32]        two vectors of sixteen units

A tile of 12 x 32 sums takes 24 of the 32 vector registers of AVX-512. Where there are fewer or narrower ones, three of
its rows are summed at a time. It is summed over the whole axis before it leaves the registers.
"""

from std.collections import Array
from std.math import ceildiv, exp, isfinite, nan, rsqrt
from std.memory import Pointer, bitcast
from std.sys import CompilationTarget, llvm_intrinsic

comptime BF16 = DType.bfloat16
comptime F32 = DType.float32
comptime U32 = DType.uint32
comptime LANES = 16
comptime TILE_ROWS = 12
comptime TILE_COLUMNS = 2 * LANES
comptime PART_ROWS = TILE_ROWS if CompilationTarget._has_feature["avx512f"]() else 3
comptime Lanes = SIMD[F32, LANES]
comptime Units = SIMD[U32, LANES]
comptime Part = Array[Lanes, 2 * PART_ROWS]
comptime Tile = Array[Lanes, 2 * TILE_ROWS]
"""Row r's sums are at 2 r and 2 r + 1."""


def per_unit[dtype: DType]() -> Int:
    """Numbers in 32 bits."""
    comptime if dtype == F32:
        return 1
    return 2


@always_inline
def add_products[dtype: DType](sums: Lanes, a: Units, b: Units) -> Lanes:
    """Return sums plus the products of all numbers of a unit."""
    comptime if dtype == F32:
        return bitcast[F32, LANES](a).fma(bitcast[F32, LANES](b), sums)
    else:
        comptime if CompilationTarget._has_feature["avx512bf16"]():
            var left, right = bitcast[BF16, 2 * LANES](a), bitcast[BF16, 2 * LANES](b)
            return llvm_intrinsic["llvm.x86.avx512bf16.dpbf16ps.512", Lanes](sums, left, right)
        else:
            return first(a).fma(first(b), second(a).fma(second(b), sums))


@always_inline
def first(pairs: Units) -> Lanes:
    """Of pairs of bfloat16 numbers, which are the upper halves of float32 ones."""
    return bitcast[F32, LANES](pairs << Units(16))


@always_inline
def second(pairs: Units) -> Lanes:
    """The other ones."""
    return bitcast[F32, LANES](pairs & Units(0xFFFF0000))


def widens[dtype: DType, widened: Bool = False]() -> Bool:
    """Whether rows are packed as float32, because it is asked for or the processor multiplies nothing narrower.

    What is packed then is [panels][numbers][12] and not in units.
    """
    return dtype == BF16 and (widened or not CompilationTarget._has_feature["avx512bf16"]())


@always_inline
def tile_products[
    dtype: DType
](rows: Pointer[mut=_, UInt32, _], columns: Pointer[mut=_, UInt32, _], units: Int) -> Tile:
    """Sum a tile over its panels of rows and columns."""
    var tile = Tile(fill=Lanes(0))
    comptime for part in range(TILE_ROWS // PART_ROWS):
        var sums = Part(fill=Lanes(0))
        add_units[dtype](sums, rows.unsafe_offset(part * PART_ROWS), 1, TILE_ROWS, columns, units)
        comptime for i in range(2 * PART_ROWS):
            tile[part * 2 * PART_ROWS + i] = sums[i]
    return tile^


@always_inline
def wide_products(rows: Pointer[mut=_, UInt32, _], columns: Pointer[mut=_, UInt32, _], units: Int) -> Tile:
    """Sum a tile over panels of float32 rows and of pairs of bfloat16 columns, which are widened in registers."""
    var tile = Tile(fill=Lanes(0))
    var numbers = rows.unsafe_bitcast[Float32]()
    comptime for part in range(TILE_ROWS // PART_ROWS):
        var sums = Part(fill=Lanes(0))
        for unit in range(units):
            var left = columns.unsafe_load[width=LANES](unit * TILE_COLUMNS)
            var right = columns.unsafe_load[width=LANES](unit * TILE_COLUMNS + LANES)
            comptime for half in range(2):
                var a = first(left) if half == 0 else second(left)
                var b = first(right) if half == 0 else second(right)
                comptime for row in range(PART_ROWS):
                    var number = Lanes(numbers.unsafe_load((2 * unit + half) * TILE_ROWS + part * PART_ROWS + row))
                    sums[2 * row] = a.fma(number, sums[2 * row])
                    sums[2 * row + 1] = b.fma(number, sums[2 * row + 1])
        comptime for i in range(2 * PART_ROWS):
            tile[part * 2 * PART_ROWS + i] = sums[i]
    return tile^


@always_inline
def add_units[
    dtype: DType
](
    mut sums: Part,
    rows: Pointer[mut=_, UInt32, _],
    row_stride: Int,
    unit_stride: Int,
    columns: Pointer[mut=_, UInt32, _],
    units: Int,
):
    """Add products to what is summed at a time.

    Args:
        sums: Row r's at 2 r and 2 r + 1.
        rows: The operand that is broadcast.
        row_stride: From one row to the next.
        unit_stride: From one unit of a row to the next.
        columns: [units][32].
        units: How many.
    """
    for unit in range(units):
        var left = columns.unsafe_load[width=LANES](unit * TILE_COLUMNS)
        var right = columns.unsafe_load[width=LANES](unit * TILE_COLUMNS + LANES)
        comptime for row in range(PART_ROWS):
            var a = Units(rows.unsafe_load(row * row_stride + unit * unit_stride))
            sums[2 * row] = add_products[dtype](sums[2 * row], a, left)
            sums[2 * row + 1] = add_products[dtype](sums[2 * row + 1], a, right)


def pack_rows(source: Pointer[mut=_, UInt32, _], panel: Pointer[mut=True, UInt32, _], rows: Int, units: Int):
    """Fill one panel; rows that are not there are zero.

    Args:
        source: [rows][units].
        panel: [units][12].
        rows: How many there are, at most 12.
        units: Units in a row.
    """
    for row in range(TILE_ROWS):
        for unit in range(units):
            panel.unsafe_store(
                unit * TILE_ROWS + row, source.unsafe_load(row * units + unit) if row < rows else UInt32(0)
            )


def pack_wide_rows(source: Pointer[mut=_, UInt32, _], panel: Pointer[mut=True, UInt32, _], rows: Int, units: Int):
    """Fill one panel with float32 numbers; rows that are not there are zero.

    Args:
        source: [rows][units], pairs of bfloat16.
        panel: [2 units][12].
        rows: How many there are, at most 12.
        units: Units in a row.
    """
    for row in range(TILE_ROWS):
        for unit in range(units):
            var pair = source.unsafe_load(row * units + unit) if row < rows else UInt32(0)
            panel.unsafe_store(2 * unit * TILE_ROWS + row, pair << 16)
            panel.unsafe_store((2 * unit + 1) * TILE_ROWS + row, pair & 0xFFFF0000)


@always_inline
def sums_of[
    dtype: DType, wide: Bool
](rows: Pointer[mut=_, UInt32, _], columns: Pointer[mut=_, UInt32, _], units: Int) -> Tile:
    """A tile's sums, in either way; see `widens`."""
    comptime if wide:
        return wide_products(rows, columns, units)
    else:
        return tile_products[dtype](rows, columns, units)


def panel_words[dtype: DType, wide: Bool](inputs: Int) -> Int:
    """Words of a panel of twelve rows, as `sums_of` takes it."""
    var units = ceildiv(inputs, per_unit[dtype]())
    return units * TILE_ROWS * (per_unit[dtype]() if wide else 1)


@always_inline
def put_number[dtype: DType, wide: Bool](panel: Pointer[mut=True, UInt32, _], row: Int, i: Int, number: Scalar[dtype]):
    """Input i of a row of a panel."""
    comptime if wide or dtype == F32:
        panel.unsafe_bitcast[Float32]().unsafe_store(i * TILE_ROWS + row, number.cast[F32]())
    else:
        panel.unsafe_bitcast[Scalar[dtype]]().unsafe_store((i // 2 * TILE_ROWS + row) * 2 + i % 2, number)


@always_inline
def store_lanes[dtype: DType](place: Pointer[mut=True, Scalar[dtype], _], numbers: Lanes, count: Int):
    """Round and store sixteen numbers, or as many as `count` says if they are fewer."""
    if count >= LANES:
        place.unsafe_store(0, numbers.cast[dtype]())
        return
    for i in range(count):
        place.unsafe_store(i, numbers[i].cast[dtype]())


@always_inline
def inverse_size[dtype: DType, //](numbers: Pointer[mut=_, Scalar[dtype], _], width: Int, epsilon: Float32) -> Float32:
    """One by the root of the mean square of `width` numbers and epsilon."""
    var whole = width // LANES * LANES
    var squares = Lanes(0)
    for i in range(0, whole, LANES):
        var number = numbers.unsafe_load[width=LANES](i).cast[F32]()
        squares = number.fma(number, squares)
    var total = squares.reduce_add()
    for i in range(whole, width):
        var number = numbers.unsafe_load(i).cast[F32]()
        total = number.fma(number, total)
    return inverse_root(total / Float32(width), epsilon)


@always_inline
def inverse_root(mean_square: Float32, epsilon: Float32) -> Float32:
    """One by the root of both; NaN of an infinite mean, which would make zeros and hide that it overflowed."""
    return rsqrt(mean_square + epsilon) if isfinite(mean_square) else nan[F32]()


@always_inline
def gated_lanes[gelu: Bool](gate: Lanes, up: Lanes) -> Lanes:
    """What a gate lets through: silu(gate) · up, or gelu(gate) · up by the approximation with tanh.

    (1 + tanh u) / 2 is the logistic function of 2 u, so that both are a gate times that function of something.
    """
    comptime if gelu:
        var within = gate * (1 + 0.044715 * gate * gate)
        return gate / (1 + exp(-1.5957691216057308 * within)) * up  # 2 √(2 / π)
    else:
        return gate / (1 + exp(-gate)) * up


@always_inline
def store_tile[
    dtype: DType, //, gated: Bool, gelu: Bool = False
](place: Pointer[mut=True, Scalar[dtype], _], sums: Tile, stride: Int, height: Int, width: Int):
    """Round and store a tile's sums, or what its left half gates of its right half.

    Args:
        place: Of its first output.
        sums: The tile.
        stride: From one row of outputs to the next.
        height: Rows that exist; all where there are more.
        width: Outputs that exist; all where there are more.
    """
    comptime for row in range(TILE_ROWS):
        if row < height:
            comptime if gated:
                var gated_sums = gated_lanes[gelu](sums[2 * row], sums[2 * row + 1])
                store_lanes(place.unsafe_offset(row * stride), gated_sums, width)
            else:
                comptime for half in range(2):
                    var there = place.unsafe_offset(row * stride + half * LANES)
                    store_lanes(there, sums[2 * row + half], width - half * LANES)
