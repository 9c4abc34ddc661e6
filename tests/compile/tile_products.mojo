"""How far sums of `kernels.products` and `kernels.codes` are from those of whole numbers in float64: 0 each time."""

from kernels.codes import ROW_WORDS, code_products, middle, pack_codes
from kernels.products import BF16, F32, LANES, pack_wide_rows, per_unit, tile_products, wide_products
from std.memory.alloc import Layout, alloc, dealloc


def farthest[dtype: DType](units: Int) -> Float64:
    """Return the largest difference over a tile."""
    comptime count = per_unit[dtype]()
    var row_memory = alloc(Layout[Scalar[dtype]](count=units * 12 * count))
    var column_memory = alloc(Layout[Scalar[dtype]](count=units * 32 * count))
    var rows, columns = row_memory.unsafe_ptr(), column_memory.unsafe_ptr()
    for i in range(units * 12 * count):
        rows.unsafe_store(i, Scalar[dtype]((i * 7 % 13) - 6))
    for i in range(units * 32 * count):
        columns.unsafe_store(i, Scalar[dtype]((i * 5 % 11) - 5))
    var pairs, others = rows.unsafe_bitcast[UInt32](), columns.unsafe_bitcast[UInt32]()
    var tile = tile_products[dtype](pairs, others, units)
    var worst = Float64(0)
    for row in range(12):
        for column in range(32):
            var exact = Float64(0)
            for unit in range(units):
                for i in range(count):
                    var a = rows.unsafe_load((unit * 12 + row) * count + i).cast[DType.float64]()
                    var b = columns.unsafe_load((unit * 32 + column) * count + i).cast[DType.float64]()
                    exact += a * b
            var ours = tile[2 * row + column // LANES][column % LANES].cast[DType.float64]()
            worst = max(worst, abs(ours - exact))
    dealloc(row_memory^)
    dealloc(column_memory^)
    return worst


def farthest_wide(units: Int) -> Float64:
    """Return the largest difference between rows as pairs and as float32 numbers."""
    var row_memory = alloc(Layout[UInt32](count=units * 12))
    var panel_memory = alloc(Layout[UInt32](count=units * 12))
    var wide_memory = alloc(Layout[UInt32](count=units * 24))
    var column_memory = alloc(Layout[UInt32](count=units * 32))
    var rows, panel = row_memory.unsafe_ptr(), panel_memory.unsafe_ptr()
    var wide, columns = wide_memory.unsafe_ptr(), column_memory.unsafe_ptr()
    for i in range(units * 24):
        rows.unsafe_bitcast[Scalar[BF16]]().unsafe_store(i, Scalar[BF16]((i * 7 % 13) - 6))
    for i in range(units * 64):
        columns.unsafe_bitcast[Scalar[BF16]]().unsafe_store(i, Scalar[BF16]((i * 5 % 11) - 5))
    for row in range(12):
        for unit in range(units):
            panel.unsafe_store(unit * 12 + row, rows.unsafe_load(row * units + unit))
    pack_wide_rows(rows, wide, 12, units)
    var expected = tile_products[BF16](panel, columns, units)
    var got = wide_products(wide, columns, units)
    var worst = Float64(0)
    for i in range(24):
        worst = max(worst, abs(expected[i] - got[i]).reduce_max().cast[DType.float64]())
    dealloc(row_memory^)
    dealloc(panel_memory^)
    dealloc(wide_memory^)
    dealloc(column_memory^)
    return worst


def farthest_codes[bits: Int, group: Int](groups: Int) -> Float64:
    """Return the largest difference over a tile of codes whose scales are one."""
    var inputs = groups * group
    var row_memory = alloc(Layout[Float32](count=12 * inputs))
    var panel_memory = alloc(Layout[UInt32](count=inputs // 4 * ROW_WORDS))
    var scale_memory = alloc(Layout[Float32](count=groups * 12))
    var start_memory = alloc(Layout[Int32](count=groups * 12))
    var code_memory = alloc(Layout[UInt8](count=inputs * 32 * bits // 8))
    var one_memory = alloc(Layout[Float32](count=groups * 32))
    var rows, panel, scales = row_memory.unsafe_ptr(), panel_memory.unsafe_ptr(), scale_memory.unsafe_ptr()
    var starts, codes, ones = start_memory.unsafe_ptr(), code_memory.unsafe_ptr(), one_memory.unsafe_ptr()
    for i in range(12 * inputs):
        rows.unsafe_store(i, Float32(127) if i % group == 0 else Float32(i * 7919 % 255 - 127))
    for i in range(inputs * 32 * bits // 8):
        codes.unsafe_store(i, UInt8(i * 104729 % 251))
    for i in range(groups * 32):
        ones.unsafe_store(i, Float32(1))
    pack_codes[F32, group, middle[bits]()](rows, panel, scales, starts, 12, inputs)
    var tile = code_products[bits, group](panel, scales, starts, codes.unsafe_bitcast[UInt32](), ones, groups)
    var worst = Float64(0)
    for row in range(12):
        for column in range(32):
            var exact = 0
            for input in range(inputs):
                var stored = input // 4 if bits == 8 else input // 8
                var code = Int(codes.unsafe_load((stored * 32 + column) * 4 + input % 4))
                comptime if bits == 4:
                    code = (code >> (4 * (input // 4 % 2))) & 15
                exact += Int(rows.unsafe_load(row * inputs + input)) * (code - middle[bits]())
            var ours = tile[2 * row + column // LANES][column % LANES].cast[DType.float64]()
            worst = max(worst, abs(ours - Float64(exact)))
    dealloc(row_memory^)
    dealloc(panel_memory^)
    dealloc(scale_memory^)
    dealloc(start_memory^)
    dealloc(code_memory^)
    dealloc(one_memory^)
    return worst


def main():
    print(farthest[F32](37), farthest[BF16](37), farthest_wide(37))
    print(farthest_codes[8, 128](3), farthest_codes[8, 32](3), farthest_codes[4, 32](3))
