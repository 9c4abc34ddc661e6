"""What the ops for a GPU share: eight numbers a lane, and sums over a block of threads.

A lane takes 16 bytes of bfloat16 at a time, which is one memory instruction of the widest kind. Graphs use these ops in
bfloat16; they take float32 too, in which tests see more.
"""

from max.gpu import barrier, lane_id, warp_id
from max.gpu.memory import AddressSpace
from std.math import nan, rsqrt
from std.memory import Pointer

import max.gpu.primitives.warp as warp

comptime F32 = DType.float32
comptime EACH = 8
"""Numbers that a lane takes at a time."""
comptime Eight = SIMD[F32, EACH]
comptime LARGEST: Float32 = 1e32
"""A mean square beyond this is the square of a number beyond `graphs.overflow.LIMIT`: what is made of it is NaN."""
comptime Shared = Pointer[mut=True, Float32, _, address_space=AddressSpace.SHARED]


@always_inline
def load_eight[dtype: DType](source: Pointer[mut=_, Scalar[dtype], _], at: Int) -> Eight:
    """Eight neighbours in float32, from an address that is a multiple of their size."""
    return source.unsafe_load[width=EACH, alignment=bytes_of_eight[dtype]()](at).cast[F32]()


@always_inline
def store_eight[dtype: DType](target: Pointer[mut=True, Scalar[dtype], _], at: Int, numbers: Eight):
    """Eight neighbours, rounded, to an address that is a multiple of their size."""
    target.unsafe_store[alignment=bytes_of_eight[dtype]()](at, numbers.cast[dtype]())


def bytes_of_eight[dtype: DType]() -> Int:
    """Size of eight numbers."""
    comptime assert dtype == DType.bfloat16 or dtype == F32, "numbers are bfloat16 or float32"
    return EACH * (4 if dtype == F32 else 2)


@always_inline
def inverse_root(mean_square: Float32, epsilon: Float32) -> Float32:
    """One by the root of a mean square; NaN where that is no number to divide by."""
    return rsqrt(mean_square + epsilon) if mean_square < LARGEST else nan[F32]()


@always_inline
def block_sum[warps: Int](value: Float32, slots: Shared) -> Float32:
    """Sum of one number of each thread of a block, for all of them; every use needs slots of its own, one a warp."""
    var own = warp.sum(value)
    if lane_id() == 0:
        slots.unsafe_store(Int(warp_id()), own)
    barrier()
    var total = Float32(0)
    comptime for i in range(warps):
        total += slots.unsafe_load(i)
    return total
