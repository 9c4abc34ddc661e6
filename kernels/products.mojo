"""Products of bfloat16 matrices on a CPU, accumulated in float32: the tile that stays in registers, and its operands.

One instruction multiplies sixteen pairs of bfloat16 numbers by sixteen others and adds both products of a pair to a
float32 lane (AVX-512 BF16, `vdpbf16ps`). Operands are therefore kept in pairs along the summed axis:

    rows     [panels][pairs][12]        a pair is 32 bits, broadcast to all lanes
    columns  [panels][pairs][32]        two vectors of sixteen pairs

A tile of 12 x 32 sums takes 24 of the 32 vector registers. It is summed over the whole axis before it leaves them.
"""

from std.collections import Array
from std.memory import Pointer, bitcast
from std.sys import CompilationTarget, llvm_intrinsic

comptime BF16 = DType.bfloat16
comptime F32 = DType.float32
comptime LANES = 16
comptime TILE_ROWS = 12
comptime TILE_COLUMNS = 2 * LANES
comptime Lanes = SIMD[F32, LANES]
comptime Pairs = SIMD[BF16, 2 * LANES]
comptime Tile = Array[Lanes, 2 * TILE_ROWS]
"""Row r's sums are at 2 r and 2 r + 1."""


@always_inline
def add_products(sums: Lanes, a: Pairs, b: Pairs) -> Lanes:
    """Return sums[i] + a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]."""
    comptime if CompilationTarget._has_feature["avx512bf16"]():
        return llvm_intrinsic["llvm.x86.avx512bf16.dpbf16ps.512", Lanes](sums, a, b)
    else:
        var x, y = a.cast[F32]().deinterleave(), b.cast[F32]().deinterleave()
        return x[0].fma(y[0], x[1].fma(y[1], sums))


@always_inline
def tile_products(rows: Pointer[mut=_, UInt32, _], columns: Pointer[mut=_, Scalar[BF16], _], pairs: Int) -> Tile:
    """Sum a tile over its panels of rows and columns."""
    var tile = Tile(fill=Lanes(0))
    for pair in range(pairs):
        var left = columns.unsafe_load[width=2 * LANES](pair * 2 * TILE_COLUMNS)
        var right = columns.unsafe_load[width=2 * LANES](pair * 2 * TILE_COLUMNS + 2 * LANES)
        comptime for row in range(TILE_ROWS):
            var a = bitcast[BF16, 2 * LANES](SIMD[DType.uint32, LANES](rows.unsafe_load(pair * TILE_ROWS + row)))
            tile[2 * row] = add_products(tile[2 * row], a, left)
            tile[2 * row + 1] = add_products(tile[2 * row + 1], a, right)
    return tile^


def pack_rows(source: Pointer[mut=_, UInt32, _], panel: Pointer[mut=True, UInt32, _], rows: Int, pairs: Int):
    """Fill one panel; rows that are not there are zero.

    Args:
        source: [rows][pairs].
        panel: [pairs][12].
        rows: How many there are, at most 12.
        pairs: Pairs in a row.
    """
    for row in range(TILE_ROWS):
        for pair in range(pairs):
            panel.unsafe_store(
                pair * TILE_ROWS + row, source.unsafe_load(row * pairs + pair) if row < rows else UInt32(0)
            )
