"""SwiGLU behind its fused product on a GPU: silu(gate) · up, with one power of two and one reciprocal a number.

Twin: `graphs.linear.GatedLinear`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu import block_idx, thread_idx
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp2, recip
from std.memory import Pointer

from .gpu import EACH, F32, Eight, load_eight, store_eight

comptime THREADS = 256
comptime LOG2_E: Float32 = 1.4426950408889634


@extensibility.register("max_zimage.swiglu")
struct SwiGLU:
    """Output = silu(gate) · up."""

    @staticmethod
    def execute[
        target: StaticString, outputs: Int
    ](
        output: OutputTensor[rank=3, ...],
        both: InputTensor[dtype=output.dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Multiply.

        Parameters:
            target: The device.
            outputs: How many, a multiple of 8.

        Args:
            output: [items, length, outputs].
            both: [items, length, 2 outputs], all gates of a token before its ups.
            ctx: Runs it.
        """
        comptime assert outputs % EACH == 0, "a token must be whole vectors of eight"
        var rows = both.dim_size(0) * both.dim_size(1)
        comptime if target == "gpu":
            ctx.enqueue_function[_on_gpu[output.dtype, outputs]](
                output.unsafe_ptr(),
                both.unsafe_ptr(),
                grid_dim=(rows, ceildiv(outputs, THREADS * EACH), 1),
                block_dim=(THREADS, 1, 1),
            )
        else:
            for row in range(rows):
                for column in range(0, outputs, EACH):
                    _eight[output.dtype, outputs](output.unsafe_ptr(), both.unsafe_ptr(), row, column)


def _on_gpu[
    dtype: DType, outputs: Int
](output: Pointer[Scalar[dtype], MutAnyOrigin], both: Pointer[Scalar[dtype], MutAnyOrigin]):
    var column = (Int(block_idx.y) * THREADS + Int(thread_idx.x)) * EACH
    if column < outputs:
        _eight[dtype, outputs](output, both, Int(block_idx.x), column)


@always_inline
def _eight[
    dtype: DType, outputs: Int
](output: Pointer[mut=True, Scalar[dtype], _], both: Pointer[mut=_, Scalar[dtype], _], row: Int, column: Int):
    var gate = load_eight(both, row * 2 * outputs + column)
    var up = load_eight(both, (row * 2 + 1) * outputs + column)
    var sigmoid = Eight()
    comptime for i in range(EACH):
        sigmoid[i] = recip(1 + exp2(gate[i] * -LOG2_E))
    store_eight(output, row * outputs + column, gate * sigmoid * up)
