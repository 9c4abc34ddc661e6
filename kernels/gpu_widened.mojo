"""Weights in eight bits made the numbers that a product on a GPU takes: codes times the scale of their output.

Twin: `graphs.linear.widened`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu import block_idx, thread_idx
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.memory import Pointer

from .gpu import F32

comptime THREADS = 256
comptime CODES = 16
"""Codes that a thread takes: 16 bytes in, and twice as many out."""


@extensibility.register("max_zimage.widened")
struct Widened:
    """Wide = codes · scale of the output, rounded once."""

    @staticmethod
    def execute[
        target: StaticString, outputs: Int
    ](
        wide: OutputTensor[rank=2, ...],
        codes: InputTensor[dtype=DType.int8, rank=2, ...],
        scales: InputTensor[dtype=F32, rank=1, ...],
        x: InputTensor[dtype=wide.dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Widen a matrix.

        Parameters:
            target: The device.
            outputs: Length of a row.

        Args:
            wide: [inputs, outputs].
            codes: [inputs, outputs].
            scales: [outputs].
            x: Not read. What is made of constants alone, MAX makes when it loads a graph, and keeps: all weights, at
                their full size.
            ctx: Runs it.
        """
        var rows = codes.dim_size(0)
        comptime if target == "gpu":
            ctx.enqueue_function[_on_gpu[wide.dtype, outputs]](
                wide.unsafe_ptr(),
                codes.unsafe_ptr(),
                scales.unsafe_ptr(),
                grid_dim=(rows, ceildiv(outputs, THREADS * CODES), 1),
                block_dim=(THREADS, 1, 1),
            )
        else:
            for row in range(rows):
                for column in range(0, outputs, CODES):
                    _some[wide.dtype, outputs](wide.unsafe_ptr(), codes.unsafe_ptr(), scales.unsafe_ptr(), row, column)


def _on_gpu[
    dtype: DType, outputs: Int
](
    wide: Pointer[Scalar[dtype], MutAnyOrigin],
    codes: Pointer[Scalar[DType.int8], MutAnyOrigin],
    scales: Pointer[Float32, MutAnyOrigin],
):
    var column = (Int(block_idx.y) * THREADS + Int(thread_idx.x)) * CODES
    if column < outputs:
        _some[dtype, outputs](wide, codes, scales, Int(block_idx.x), column)


@always_inline
def _some[
    dtype: DType, outputs: Int
](
    wide: Pointer[mut=True, Scalar[dtype], _],
    codes: Pointer[mut=_, Scalar[DType.int8], _],
    scales: Pointer[mut=_, Float32, _],
    row: Int,
    column: Int,
):
    """The codes of a row from a column on: as many as a thread takes, or fewer at its end."""
    var at = row * outputs + column
    comptime if outputs % CODES == 0:
        var some = codes.unsafe_load[width=CODES, alignment=CODES](at).cast[F32]()
        var scale = scales.unsafe_load[width=CODES, alignment=CODES](column)
        wide.unsafe_store[alignment=CODES](at, (some * scale).cast[dtype]())
    else:
        for i in range(min(CODES, outputs - column)):
            var one = codes.unsafe_load(at + i).cast[F32]() * scales.unsafe_load(column + i)
            wide.unsafe_store(at + i, one.cast[dtype]())
