"""A table of embeddings as the end and the beginning of a network, on a CPU, in float32 or bfloat16: never packed.

    logits: 32 rows of the table turned, in float32                -> tiles of 12 positions x 32 tokens, capped
    means:  shares of all tokens, 12 positions side by side        -> tiles of 12 positions x 32 channels

The table also gives rows to who asks for a token, so that there is no second copy of it in another order. All is
float32 until the end. Twins: `graphs.diffusion_gemma.layer.ScaledEmbedding`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp, tanh
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc

from .products import F32, LANES, TILE_COLUMNS, TILE_ROWS, Lanes, store_lanes, tile_products
from .sharing import PRODUCTS, share_out

comptime CHUNK = 8192
"""Tokens whose rows are brought together at a time, so that they stay in the cache."""


@extensibility.register("max_zimage.table_logits")
struct TableLogits:
    """Output = softcap · tanh(x tableᵀ / softcap) / temperature."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[dtype=F32, rank=3, ...],
        x: InputTensor[rank=3, ...],
        table: InputTensor[dtype=x.dtype, rank=2, ...],
        softcap: InputTensor[dtype=F32, rank=1, ...],
        temperature: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Look every token up.

        Parameters:
            target: The device.

        Args:
            output: [rows, length, vocabulary].
            x: [rows, length, width].
            table: [vocabulary, width].
            softcap: [1].
            temperature: [1].
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.table_logits is for CPUs"
        if x.dim_size(2) != table.dim_size(1):
            raise Error("x is ", x.dim_size(2), " wide and the table ", table.dim_size(1))
        _logits[x.dtype](
            output.unsafe_ptr(),
            x.unsafe_ptr(),
            table.unsafe_ptr(),
            x.dim_size(0) * x.dim_size(1),
            x.dim_size(2),
            table.dim_size(0),
            softcap.unsafe_ptr().unsafe_load(0),
            temperature.unsafe_ptr().unsafe_load(0),
        )


@extensibility.register("max_zimage.table_means")
struct TableMeans:
    """Output = softmax(logits) table · factor, or zeros for a row that is not enabled."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[rank=3, ...],
        logits: InputTensor[dtype=output.dtype, rank=3, ...],
        enabled: InputTensor[dtype=F32, rank=1, ...],
        table: InputTensor[dtype=output.dtype, rank=2, ...],
        factor: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Mix the table's rows.

        Parameters:
            target: The device.

        Args:
            output: [rows, length, width].
            logits: [rows, length, vocabulary].
            enabled: [rows]; what its means are multiplied with. Of a row that has 0 nothing is read.
            table: [vocabulary, width].
            factor: [1].
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.table_means is for CPUs"
        if logits.dim_size(2) != table.dim_size(0):
            raise Error("there are logits of ", logits.dim_size(2), " tokens, and ", table.dim_size(0), " in the table")
        _means[output.dtype](
            output.unsafe_ptr(),
            logits.unsafe_ptr(),
            enabled.unsafe_ptr(),
            table.unsafe_ptr(),
            logits.dim_size(0) * logits.dim_size(1),
            logits.dim_size(1),
            table.dim_size(1),
            table.dim_size(0),
            factor.unsafe_ptr().unsafe_load(0),
        )


@no_inline
def _logits[
    dtype: DType
](
    output: Pointer[mut=True, Float32, _],
    x: Pointer[mut=_, Scalar[dtype], _],
    table: Pointer[mut=_, Scalar[dtype], _],
    positions: Int,
    width: Int,
    vocabulary: Int,
    softcap: Float32,
    temperature: Float32,
):
    var row_panels = ceildiv(positions, TILE_ROWS)
    var packed = alloc(Layout[Float32](count=row_panels * width * TILE_ROWS))
    var panels = packed.unsafe_ptr()

    def pack(panel: Int) {imm}:
        var place = panels.unsafe_offset(panel * width * TILE_ROWS)
        for row in range(TILE_ROWS):
            var position = panel * TILE_ROWS + row
            for i in range(width):
                var number = x.unsafe_load(position * width + i).cast[F32]() if position < positions else Float32(0)
                place.unsafe_store(i * TILE_ROWS + row, number)

    share_out(pack, row_panels, positions * width)

    def multiply(panel: Int) {imm}:
        var memory = alloc(Layout[Float32](count=width * TILE_COLUMNS))
        var columns = memory.unsafe_ptr()
        var first = panel * TILE_COLUMNS
        for column in range(TILE_COLUMNS):
            var token = first + column
            for i in range(width):
                var number = table.unsafe_load(token * width + i).cast[F32]() if token < vocabulary else Float32(0)
                columns.unsafe_store(i * TILE_COLUMNS + column, number)
        for row_panel in range(row_panels):
            _logits_tile(
                output.unsafe_offset(row_panel * TILE_ROWS * vocabulary + first),
                panels.unsafe_offset(row_panel * width * TILE_ROWS),
                columns,
                width,
                vocabulary,
                min(TILE_ROWS, positions - row_panel * TILE_ROWS),
                vocabulary - first,
                softcap,
                temperature,
            )
        dealloc(memory^)

    var numbers = vocabulary * (width + 2 * positions + positions * width // PRODUCTS)
    share_out(multiply, ceildiv(vocabulary, TILE_COLUMNS) if positions > 0 else 0, numbers)
    dealloc(packed^)


@no_inline
def _logits_tile(
    output: Pointer[mut=True, Float32, _],
    rows: Pointer[mut=_, Float32, _],
    columns: Pointer[mut=_, Float32, _],
    width: Int,
    stride: Int,
    height: Int,
    there: Int,
    softcap: Float32,
    temperature: Float32,
):
    """Capped logits of `height` positions and as many tokens as are `there`, at most a tile."""
    var sums = tile_products[F32](rows.unsafe_bitcast[UInt32](), columns.unsafe_bitcast[UInt32](), width)
    comptime for row in range(TILE_ROWS):
        if row < height:
            comptime for half in range(2):
                var capped = tanh(sums[2 * row + half] / softcap) * softcap / temperature
                store_lanes(output.unsafe_offset(row * stride + half * LANES), capped, there - half * LANES)


@no_inline
def _means[
    dtype: DType
](
    output: Pointer[mut=True, Scalar[dtype], _],
    logits: Pointer[mut=_, Scalar[dtype], _],
    enabled: Pointer[mut=_, Float32, _],
    table: Pointer[mut=_, Scalar[dtype], _],
    positions: Int,
    length: Int,
    width: Int,
    vocabulary: Int,
    factor: Float32,
):
    var row_panels, column_panels = ceildiv(positions, TILE_ROWS), ceildiv(width, TILE_COLUMNS)
    var packed = alloc(Layout[Float32](count=row_panels * vocabulary * TILE_ROWS))
    var panels = packed.unsafe_ptr()

    def weigh(panel: Int) {imm}:
        for row in range(TILE_ROWS):
            var position = panel * TILE_ROWS + row
            var share = enabled.unsafe_load(position // length) * factor if position < positions else Float32(0)
            var place = panels.unsafe_offset(panel * vocabulary * TILE_ROWS + row)
            if share == 0:
                for token in range(vocabulary):
                    place.unsafe_store(token * TILE_ROWS, Float32(0))
            else:
                _shares[dtype](logits.unsafe_offset(position * vocabulary), place, vocabulary, share)

    share_out(weigh, row_panels, 2 * positions * vocabulary)

    def mix(panel: Int) {imm}:
        var most = min(CHUNK, vocabulary)
        var columns_memory = alloc(Layout[Float32](count=most * TILE_COLUMNS))
        var sums_memory = alloc(Layout[Float32](count=row_panels * TILE_ROWS * TILE_COLUMNS))
        var columns, sums = columns_memory.unsafe_ptr(), sums_memory.unsafe_ptr()  # sums: [rows][32]
        var first = panel * TILE_COLUMNS
        var there = min(TILE_COLUMNS, width - first)
        for i in range(row_panels * TILE_ROWS * 2):
            sums.unsafe_store(i * LANES, Lanes(0))
        for begin in range(0, vocabulary, CHUNK):
            var count = min(CHUNK, vocabulary - begin)
            for token in range(count):
                var source = table.unsafe_offset((begin + token) * width + first)
                for i in range(TILE_COLUMNS):
                    var number = source.unsafe_load(i).cast[F32]() if i < there else Float32(0)
                    columns.unsafe_store(token * TILE_COLUMNS + i, number)
            for row_panel in range(row_panels):
                _add_tile(
                    sums.unsafe_offset(row_panel * TILE_ROWS * TILE_COLUMNS),
                    panels.unsafe_offset((row_panel * vocabulary + begin) * TILE_ROWS),
                    columns,
                    count,
                )
        for position in range(positions):
            var place = output.unsafe_offset(position * width + first)
            for i in range(there):
                place.unsafe_store(i, sums.unsafe_load(position * TILE_COLUMNS + i).cast[dtype]())
        dealloc(columns_memory^)
        dealloc(sums_memory^)

    share_out(mix, column_panels if positions > 0 else 0, vocabulary * width * (1 + positions // PRODUCTS))
    dealloc(packed^)


@no_inline
def _add_tile(
    sums: Pointer[mut=True, Float32, _],
    rows: Pointer[mut=_, Float32, _],
    columns: Pointer[mut=_, Float32, _],
    count: Int,
):
    var tile = tile_products[F32](rows.unsafe_bitcast[UInt32](), columns.unsafe_bitcast[UInt32](), count)
    comptime for i in range(2 * TILE_ROWS):
        sums.unsafe_store(i * LANES, sums.unsafe_load[width=LANES](i * LANES) + tile[i])


def _shares[
    dtype: DType
](logits: Pointer[mut=_, Scalar[dtype], _], place: Pointer[mut=True, Float32, _], vocabulary: Int, share: Float32):
    """Softmax of logits times a factor, stored for twelve positions side by side."""
    var whole = vocabulary // LANES * LANES
    var tops = Lanes(logits.unsafe_load(0).cast[F32]())
    for token in range(0, whole, LANES):
        tops = max(tops, logits.unsafe_load[width=LANES](token).cast[F32]())
    var top = tops.reduce_max()
    for token in range(whole, vocabulary):
        top = max(top, logits.unsafe_load(token).cast[F32]())
    var total = Float32(0)
    for token in range(0, whole, LANES):
        var numbers = exp(logits.unsafe_load[width=LANES](token).cast[F32]() - top)
        total += numbers.reduce_add()
        comptime for i in range(LANES):
            place.unsafe_store((token + i) * TILE_ROWS, numbers[i])
    for token in range(whole, vocabulary):
        var number = exp(logits.unsafe_load(token).cast[F32]() - top)
        total += number
        place.unsafe_store(token * TILE_ROWS, number)
    var scale = share / total
    for token in range(vocabulary):
        place.unsafe_store(token * TILE_ROWS, place.unsafe_load(token * TILE_ROWS) * scale)
