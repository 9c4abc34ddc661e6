"""The experts that tokens are sent to, on a CPU, in float32 or bfloat16.

    scores -> the largest of each token, and their shares                       a token at a time
    slots (a token and one of its experts) sorted by expert, in token order
    twelve slots of an expert: rows packed -> gelu(gate) · up -> down           each in registers, one after the other
    a token: its slots, times their shares, summed in the order of their scores

What a token comes to does not depend on the tokens beside it, nor on how the work is shared out. The twin is
`graphs.diffusion_gemma.feed_forward.DenseExperts`.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, DiffusionGemmaTextRouter and
DiffusionGemmaTextExperts.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.memory import Pointer
from std.memory.alloc import Layout, alloc, dealloc

from .chosen import choose_experts, sort_slots
from .products import (
    F32,
    LANES,
    TILE_COLUMNS,
    TILE_ROWS,
    Tile,
    gated_lanes,
    per_unit,
    store_lanes,
    tile_products,
    wide_products,
    widens,
)
from .sharing import PRODUCTS, share_out, tasks_for


@extensibility.register("max_zimage.experts")
struct Experts:
    """Output = sum over the chosen experts of share · down(gelu(x gateᵀ) · (x upᵀ))."""

    @staticmethod
    def execute[
        target: StaticString, each: Int, width: Int, widened: Bool
    ](
        output: OutputTensor[rank=3, ...],
        x: InputTensor[dtype=output.dtype, rank=3, ...],
        scores: InputTensor[dtype=F32, rank=3, ...],
        scales: InputTensor[dtype=F32, rank=1, ...],
        gate_up: InputTensor[dtype=output.dtype, rank=4, ...],
        down: InputTensor[dtype=output.dtype, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        """Send tokens to experts.

        Parameters:
            target: The device.
            each: Experts that a token is sent to.
            width: Gates of an expert.
            widened: Whether bfloat16 is multiplied as float32 where the processor could multiply it as it is.

        Args:
            output: [rows, length, inputs].
            x: [rows, length, inputs].
            scores: [rows, length, experts]: the largest decide, of equal ones the first; shares are their softmax.
            scales: [experts], times which shares are taken.
            gate_up: [experts, width / 16, units, 32 numbers a unit], of each expert as `max_zimage.gelu_linear` has it.
            down: [experts, inputs / 32, units, 32 numbers a unit], of each as `max_zimage.linear` has it.
            ctx: Unused.
        """
        comptime assert target == "cpu", "max_zimage.experts is for CPUs"
        comptime dtype = output.dtype
        var inputs, experts = x.dim_size(2), scales.dim_size(0)
        if gate_up.dim_size(2) != ceildiv(inputs, per_unit[dtype]()) or down.dim_size(1) != ceildiv(
            inputs, TILE_COLUMNS
        ):
            raise Error("x has ", inputs, " inputs, and the packed experts have others")
        if gate_up.dim_size(1) != ceildiv(width, LANES) or down.dim_size(2) != ceildiv(width, per_unit[dtype]()):
            raise Error("an expert has ", width, " gates, and the packed ones have others")
        if scores.dim_size(2) != experts or gate_up.dim_size(0) != experts or down.dim_size(0) != experts:
            raise Error("there are scores of ", scores.dim_size(2), " experts and scales of ", experts)
        if each > experts:
            raise Error("a token cannot be sent to ", each, " of ", experts, " experts")
        _send[dtype, widens[dtype, widened]()](
            output.unsafe_ptr(),
            x.unsafe_ptr(),
            scores.unsafe_ptr(),
            scales.unsafe_ptr(),
            gate_up.unsafe_ptr().unsafe_bitcast[UInt32](),
            down.unsafe_ptr().unsafe_bitcast[UInt32](),
            x.dim_size(0) * x.dim_size(1),
            inputs,
            width,
            experts,
            each,
        )


@no_inline
def _send[
    dtype: DType, wide: Bool
](
    output: Pointer[mut=True, Scalar[dtype], _],
    x: Pointer[mut=_, Scalar[dtype], _],
    scores: Pointer[mut=_, Float32, _],
    scales: Pointer[mut=_, Float32, _],
    gate_up: Pointer[mut=_, UInt32, _],
    down: Pointer[mut=_, UInt32, _],
    tokens: Int,
    inputs: Int,
    width: Int,
    experts: Int,
    each: Int,
):
    var slots = tokens * each
    var most = slots // TILE_ROWS + min(experts, slots)  # tiles: of every expert one may not be full
    var shares_memory = alloc(Layout[Float32](count=slots))
    var made_memory = alloc(Layout[Float32](count=slots * inputs))
    var chosen_memory = alloc(Layout[Int32](count=slots))
    var order_memory = alloc(Layout[Int32](count=slots))
    var starts_memory = alloc(Layout[Int32](count=experts + 1))
    var tiles_memory = alloc(Layout[Int32](count=3 * most))
    var shares, made = shares_memory.unsafe_ptr(), made_memory.unsafe_ptr()  # made: [slots][inputs]
    var chosen, order = chosen_memory.unsafe_ptr(), order_memory.unsafe_ptr()  # [slots]: an expert; a slot
    var starts = starts_memory.unsafe_ptr()  # [experts + 1]
    var tiles = tiles_memory.unsafe_ptr()  # [tiles][3]: expert, first place in the order, slots
    var token_tasks = tasks_for(ceildiv(tokens, 2 * TILE_ROWS))

    def choose(task: Int) {imm}:
        for token in range(task * tokens // token_tasks, (task + 1) * tokens // token_tasks):
            choose_experts(
                scores.unsafe_offset(token * experts),
                scales,
                chosen.unsafe_offset(token * each),
                shares.unsafe_offset(token * each),
                experts,
                each,
            )

    share_out(choose, token_tasks, tokens * experts * (each + 1))
    var count = sort_slots(chosen, order, starts, tiles, slots, experts)
    var tile_tasks = tasks_for(count)
    var gate_up_words = ceildiv(width, LANES) * ceildiv(inputs, per_unit[dtype]()) * TILE_COLUMNS
    var down_words = ceildiv(inputs, TILE_COLUMNS) * ceildiv(width, per_unit[dtype]()) * TILE_COLUMNS

    def compute(task: Int) {imm}:
        var rows_memory = alloc(Layout[UInt32](count=_panel_words[dtype, wide](inputs)))
        var inside_memory = alloc(Layout[UInt32](count=_panel_words[dtype, wide](width)))
        for tile in range(task * count // tile_tasks, (task + 1) * count // tile_tasks):
            var expert = Int(tiles.unsafe_load(3 * tile))
            _through[dtype, wide](
                made,
                x,
                order.unsafe_offset(Int(tiles.unsafe_load(3 * tile + 1))),
                gate_up.unsafe_offset(expert * gate_up_words),
                down.unsafe_offset(expert * down_words),
                rows_memory.unsafe_ptr(),
                inside_memory.unsafe_ptr(),
                Int(tiles.unsafe_load(3 * tile + 2)),
                inputs,
                width,
                each,
            )
        dealloc(rows_memory^)
        dealloc(inside_memory^)

    share_out(compute, tile_tasks, slots * 3 * inputs * width // PRODUCTS)

    def join(task: Int) {imm}:
        for token in range(task * tokens // token_tasks, (task + 1) * tokens // token_tasks):
            _join[dtype](
                output.unsafe_offset(token * inputs),
                made.unsafe_offset(token * each * inputs),
                shares.unsafe_offset(token * each),
                inputs,
                each,
            )

    share_out(join, token_tasks, slots * inputs)
    dealloc(shares_memory^)
    dealloc(made_memory^)
    dealloc(chosen_memory^)
    dealloc(order_memory^)
    dealloc(starts_memory^)
    dealloc(tiles_memory^)


@no_inline
def _through[
    dtype: DType, wide: Bool
](
    made: Pointer[mut=True, Float32, _],
    x: Pointer[mut=_, Scalar[dtype], _],
    slots: Pointer[mut=_, Int32, _],
    gate_up: Pointer[mut=_, UInt32, _],
    down: Pointer[mut=_, UInt32, _],
    rows: Pointer[mut=True, UInt32, _],
    inside: Pointer[mut=True, UInt32, _],
    height: Int,
    inputs: Int,
    width: Int,
    each: Int,
):
    """Some slots of an expert through it, all twelve or fewer.

    Args:
        made: [all slots][inputs], where the results go.
        x: [tokens][inputs].
        slots: Their numbers.
        gate_up: The expert's.
        down: The expert's.
        rows: Room for a panel of inputs.
        inside: Room for a panel of what is gated.
        height: How many slots.
        inputs: Of a token.
        width: Gates.
        each: Slots of a token.
    """
    for i in range(_panel_words[dtype, wide](inputs)):
        rows.unsafe_store(i, UInt32(0))
    for row in range(height):
        var source = x.unsafe_offset(Int(slots.unsafe_load(row)) // each * inputs)
        for i in range(inputs):
            _put[dtype, wide](rows, row, i, source.unsafe_load(i))
    for i in range(_panel_words[dtype, wide](width)):
        inside.unsafe_store(i, UInt32(0))
    var units = ceildiv(inputs, per_unit[dtype]())
    for panel in range(ceildiv(width, LANES)):
        var sums = _sums[dtype, wide](rows, gate_up.unsafe_offset(panel * units * TILE_COLUMNS), units)
        var there = min(LANES, width - panel * LANES)
        comptime for row in range(TILE_ROWS):
            if row < height:
                var gated = gated_lanes[True](sums[2 * row], sums[2 * row + 1]).cast[dtype]()
                for i in range(there):
                    _put[dtype, wide](inside, row, panel * LANES + i, gated[i])
    units = ceildiv(width, per_unit[dtype]())
    for panel in range(ceildiv(inputs, TILE_COLUMNS)):
        var sums = _sums[dtype, wide](inside, down.unsafe_offset(panel * units * TILE_COLUMNS), units)
        var first = panel * TILE_COLUMNS
        comptime for row in range(TILE_ROWS):
            if row < height:
                var place = made.unsafe_offset(Int(slots.unsafe_load(row)) * inputs + first)
                comptime for half in range(2):
                    var there = place.unsafe_offset(half * LANES)
                    store_lanes(there, sums[2 * row + half], inputs - first - half * LANES)


@always_inline
def _sums[
    dtype: DType, wide: Bool
](rows: Pointer[mut=_, UInt32, _], columns: Pointer[mut=_, UInt32, _], units: Int) -> Tile:
    comptime if wide:
        return wide_products(rows, columns, units)
    else:
        return tile_products[dtype](rows, columns, units)


def _panel_words[dtype: DType, wide: Bool](inputs: Int) -> Int:
    """Words of a panel of twelve rows, as `_sums` takes it."""
    var units = ceildiv(inputs, per_unit[dtype]())
    return units * TILE_ROWS * (per_unit[dtype]() if wide else 1)


@always_inline
def _put[dtype: DType, wide: Bool](panel: Pointer[mut=True, UInt32, _], row: Int, i: Int, number: Scalar[dtype]):
    """Input i of a row of a panel."""
    comptime if wide or dtype == F32:
        panel.unsafe_bitcast[Float32]().unsafe_store(i * TILE_ROWS + row, number.cast[F32]())
    else:
        panel.unsafe_bitcast[Scalar[dtype]]().unsafe_store((i // 2 * TILE_ROWS + row) * 2 + i % 2, number)


def _join[
    dtype: DType
](
    output: Pointer[mut=True, Scalar[dtype], _],
    made: Pointer[mut=_, Float32, _],
    shares: Pointer[mut=_, Float32, _],
    inputs: Int,
    each: Int,
):
    """A token's slots [each][inputs] times their shares, summed and rounded once."""
    var whole = inputs // LANES * LANES
    for i in range(0, whole, LANES):
        var total = made.unsafe_load[width=LANES](i) * shares.unsafe_load(0)
        for slot in range(1, each):
            total = made.unsafe_load[width=LANES](slot * inputs + i).fma(shares.unsafe_load(slot), total)
        output.unsafe_store(i, total.cast[dtype]())
    for i in range(whole, inputs):
        var total = made.unsafe_load(i) * shares.unsafe_load(0)
        for slot in range(1, each):
            total = made.unsafe_load(slot * inputs + i).fma(shares.unsafe_load(slot), total)
        output.unsafe_store(i, total.cast[dtype]())
