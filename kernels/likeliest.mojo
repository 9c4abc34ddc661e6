"""What is told of logits, on a CPU: the likeliest token, the first of the likeliest with their chances, and entropy.

    a position: its largest logit -> sums of exp(above it), and of that times what is above it
                vectors of sixteen that hold nothing beyond the last of the likeliest are passed over

The twin is `graphs.diffusion_gemma.stack.looked`.
"""

import extensibility

from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import exp, log
from std.memory import Pointer

from .products import F32, LANES, Lanes
from .sharing import share_out, tasks_for


@extensibility.register("max_zimage.likeliest")
struct Likeliest:
    """Chances, tokens and entropies of logits."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        chances: OutputTensor[dtype=F32, rank=3, ...],
        tokens: OutputTensor[dtype=DType.int64, rank=3, ...],
        likeliest: OutputTensor[dtype=DType.int64, rank=2, ...],
        entropies: OutputTensor[dtype=F32, rank=2, ...],
        logits: InputTensor[dtype=F32, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        """Look.

        Parameters:
            target: The device.

        Args:
            chances: [rows, length, top], over the whole vocabulary, falling.
            tokens: [rows, length, top]; of equal chances the smaller token comes first.
            likeliest: [rows, length], the first of `tokens`.
            entropies: [rows, length], natural logarithm; NaN where logits are NaN or infinite.
            logits: [rows, length, vocabulary].
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.likeliest is for CPUs"
        var vocabulary, top = logits.dim_size(2), chances.dim_size(2)
        if top > vocabulary or top == 0:
            raise Error("the first ", top, " of ", vocabulary, " tokens are none")
        _look(
            chances.unsafe_ptr(),
            tokens.unsafe_ptr(),
            likeliest.unsafe_ptr(),
            entropies.unsafe_ptr(),
            logits.unsafe_ptr(),
            logits.dim_size(0) * logits.dim_size(1),
            vocabulary,
            top,
        )


@no_inline
def _look(
    chances: Pointer[mut=True, Float32, _],
    tokens: Pointer[mut=True, Int64, _],
    likeliest: Pointer[mut=True, Int64, _],
    entropies: Pointer[mut=True, Float32, _],
    logits: Pointer[mut=_, Float32, _],
    positions: Int,
    vocabulary: Int,
    top: Int,
):
    var tasks = tasks_for(positions)

    def look(task: Int) {imm}:
        for position in range(task * positions // tasks, (task + 1) * positions // tasks):
            var source = logits.unsafe_offset(position * vocabulary)
            var values, names = chances.unsafe_offset(position * top), tokens.unsafe_offset(position * top)
            _rank(values, names, source, vocabulary, top)
            likeliest.unsafe_store(position, names.unsafe_load(0))
            var highest = values.unsafe_load(0)
            var sums = _sums(source, highest, vocabulary)
            entropies.unsafe_store(position, log(sums[0]) - sums[1] / sums[0])
            for i in range(top):
                values.unsafe_store(i, exp(values.unsafe_load(i) - highest) / sums[0])

    share_out(look, tasks, positions * (3 * vocabulary + 16 * top))


def _rank(
    values: Pointer[mut=True, Float32, _],
    names: Pointer[mut=True, Int64, _],
    source: Pointer[mut=_, Float32, _],
    vocabulary: Int,
    top: Int,
):
    """The largest logits, falling, and their tokens."""
    for token in range(top):
        _insert(values, names, token, source.unsafe_load(token), token)
    var token = top
    while token + LANES <= vocabulary:
        var least = Lanes(values.unsafe_load(top - 1))
        if source.unsafe_load[width=LANES](token).gt(least).reduce_or():
            for i in range(token, token + LANES):
                _offer(values, names, top, source.unsafe_load(i), i)
        token += LANES
    for i in range(token, vocabulary):
        _offer(values, names, top, source.unsafe_load(i), i)


@always_inline
def _offer(
    values: Pointer[mut=True, Float32, _],
    names: Pointer[mut=True, Int64, _],
    top: Int,
    value: Float32,
    token: Int,
):
    """Take a logit in place of the last one, where it is larger."""
    if value > values.unsafe_load(top - 1):
        _insert(values, names, top - 1, value, token)


@always_inline
def _insert(
    values: Pointer[mut=True, Float32, _],
    names: Pointer[mut=True, Int64, _],
    count: Int,
    value: Float32,
    token: Int,
):
    """Put a logit where it belongs among the first ones, of which there are `count`: behind those that are equal."""
    var place = count
    while place > 0 and values.unsafe_load(place - 1) < value:
        values.unsafe_store(place, values.unsafe_load(place - 1))
        names.unsafe_store(place, names.unsafe_load(place - 1))
        place -= 1
    values.unsafe_store(place, value)
    names.unsafe_store(place, Int64(token))


def _sums(source: Pointer[mut=_, Float32, _], highest: Float32, vocabulary: Int) -> Tuple[Float32, Float32]:
    """Sums of exp(above), and of that times above, where above is what a logit has beyond the highest."""
    var whole = vocabulary // LANES * LANES
    var totals, weighed = Lanes(0), Lanes(0)
    for token in range(0, whole, LANES):
        var above = source.unsafe_load[width=LANES](token) - highest
        var share = exp(above)
        totals += share
        weighed = share.fma(above, weighed)
    var total, weight = totals.reduce_add(), weighed.reduce_add()
    for token in range(whole, vocabulary):
        var above = source.unsafe_load(token) - highest
        var share = exp(above)
        total += share
        weight = share.fma(above, weight)
    return total, weight
