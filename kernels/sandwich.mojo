"""Norms before and behind the parts of a layer, on a CPU, each token once through the cache.

    added_norms:  x' = x + norm(branch);  u = x' without its size;  u · w1, u · w2, u · w3 · factor
    joined_norms: x' = (x + norm(norm(first) + norm(second))) · scalar

Sums are float32 and results rounded once. The twin is `graphs.diffusion_gemma.layer.Layer` in plain operations.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv

from .products import F32, inverse_size
from .sharing import share_out, tasks_for

comptime TOKENS = 8
"""Of a task, at least."""


@extensibility.register("max_zimage.added_norms")
struct AddedNorms:
    """The stream with a branch added, and three norms of it."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[rank=3, ...],
        first: OutputTensor[dtype=output.dtype, rank=3, ...],
        second: OutputTensor[dtype=output.dtype, rank=3, ...],
        third: OutputTensor[dtype=output.dtype, rank=3, ...],
        x: InputTensor[dtype=output.dtype, rank=3, ...],
        branch: InputTensor[dtype=output.dtype, rank=3, ...],
        weight: InputTensor[dtype=output.dtype, rank=1, ...],
        first_weight: InputTensor[dtype=output.dtype, rank=1, ...],
        second_weight: InputTensor[dtype=output.dtype, rank=1, ...],
        third_weight: InputTensor[dtype=output.dtype, rank=1, ...],
        factors: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Add and normalize.

        Parameters:
            target: The device.

        Args:
            output: Sum of x and norm(branch), [rows, length, width].
            first: Its RMSNorm with the first weight.
            second: With the second one.
            third: With the third one, times the factor.
            x: [rows, length, width].
            branch: The same.
            weight: [width], of the branch's norm.
            first_weight: [width].
            second_weight: [width].
            third_weight: [width].
            factors: [2], what is added to mean squares, and the third norm's factor.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.added_norms is for CPUs"
        comptime dtype = output.dtype
        var width, tokens = x.dim_size(2), x.dim_size(0) * x.dim_size(1)
        if weight.dim_size(0) != width or branch.dim_size(2) != width:
            raise Error("x is ", width, " wide, and a norm ", weight.dim_size(0))
        var to, one, two, three = output.unsafe_ptr(), first.unsafe_ptr(), second.unsafe_ptr(), third.unsafe_ptr()
        var stream, part, scale = x.unsafe_ptr(), branch.unsafe_ptr(), weight.unsafe_ptr()
        var w1, w2, w3 = first_weight.unsafe_ptr(), second_weight.unsafe_ptr(), third_weight.unsafe_ptr()
        var epsilon, factor = factors.unsafe_ptr().unsafe_load(0), factors.unsafe_ptr().unsafe_load(1)
        var tasks = _tasks(tokens)

        def add(task: Int) {imm}:
            for token in range(task * tokens // tasks, (task + 1) * tokens // tasks):
                var at = token * width
                var size = inverse_size(part.unsafe_offset(at), width, epsilon)

                for i in range(width):
                    var number = (part.unsafe_load(at + i).cast[F32]() * size * scale.unsafe_load(i).cast[F32]()).cast[
                        dtype
                    ]()
                    to.unsafe_store(at + i, (stream.unsafe_load(at + i).cast[F32]() + number.cast[F32]()).cast[dtype]())
                size = inverse_size(to.unsafe_offset(at), width, epsilon)
                for i in range(width):
                    var unit = to.unsafe_load(at + i).cast[F32]() * size
                    one.unsafe_store(at + i, (unit * w1.unsafe_load(i).cast[F32]()).cast[dtype]())
                    two.unsafe_store(at + i, (unit * w2.unsafe_load(i).cast[F32]()).cast[dtype]())
                    three.unsafe_store(at + i, (unit * w3.unsafe_load(i).cast[F32]() * factor).cast[dtype]())

        share_out(add, tasks, 4 * tokens * width)


@extensibility.register("max_zimage.joined_norms")
struct JoinedNorms:
    """The stream with two branches added, scaled."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[rank=3, ...],
        x: InputTensor[dtype=output.dtype, rank=3, ...],
        first: InputTensor[dtype=output.dtype, rank=3, ...],
        second: InputTensor[dtype=output.dtype, rank=3, ...],
        first_weight: InputTensor[dtype=output.dtype, rank=1, ...],
        second_weight: InputTensor[dtype=output.dtype, rank=1, ...],
        weight: InputTensor[dtype=output.dtype, rank=1, ...],
        scalar: InputTensor[dtype=output.dtype, rank=1, ...],
        epsilon: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Normalize and add.

        Parameters:
            target: The device.

        Args:
            output: (x + norm(norm(first) + norm(second))) · scalar, [rows, length, width].
            x: [rows, length, width].
            first: The same.
            second: The same.
            first_weight: [width], of the first branch's norm.
            second_weight: [width], of the second one's.
            weight: [width], of the norm of their sum.
            scalar: [1].
            epsilon: [1], added to mean squares.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.joined_norms is for CPUs"
        comptime dtype = output.dtype
        var width, tokens = x.dim_size(2), x.dim_size(0) * x.dim_size(1)
        if weight.dim_size(0) != width or first.dim_size(2) != width or second.dim_size(2) != width:
            raise Error("x is ", width, " wide, and a norm ", weight.dim_size(0))
        var to, stream, one, two = output.unsafe_ptr(), x.unsafe_ptr(), first.unsafe_ptr(), second.unsafe_ptr()
        var w1, w2, scale = first_weight.unsafe_ptr(), second_weight.unsafe_ptr(), weight.unsafe_ptr()
        var times, eps = scalar.unsafe_ptr().unsafe_load(0).cast[F32](), epsilon.unsafe_ptr().unsafe_load(0)
        var tasks = _tasks(tokens)

        def join(task: Int) {imm}:
            for token in range(task * tokens // tasks, (task + 1) * tokens // tasks):
                var at = token * width
                var size1 = inverse_size(one.unsafe_offset(at), width, eps)
                var size2 = inverse_size(two.unsafe_offset(at), width, eps)
                for i in range(width):
                    var left = one.unsafe_load(at + i).cast[F32]() * size1 * w1.unsafe_load(i).cast[F32]()
                    var right = two.unsafe_load(at + i).cast[F32]() * size2 * w2.unsafe_load(i).cast[F32]()
                    to.unsafe_store(at + i, (left + right).cast[dtype]())
                var size = inverse_size(to.unsafe_offset(at), width, eps)
                for i in range(width):
                    var both = to.unsafe_load(at + i).cast[F32]() * size * scale.unsafe_load(i).cast[F32]()
                    to.unsafe_store(at + i, ((stream.unsafe_load(at + i).cast[F32]() + both) * times).cast[dtype]())

        share_out(join, tasks, 4 * tokens * width)


def _tasks(tokens: Int) -> Int:
    return tasks_for(ceildiv(tokens, TOKENS))
