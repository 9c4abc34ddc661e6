"""How far sums of `kernels.products` are from those of whole numbers in float64, which are exact: 0 in both dtypes."""

from kernels.products import BF16, F32, LANES, per_unit, tile_products
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
    var tile = tile_products[dtype](rows.unsafe_bitcast[UInt32](), columns.unsafe_bitcast[UInt32](), units)
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


def main():
    print(farthest[F32](37), farthest[BF16](37))
