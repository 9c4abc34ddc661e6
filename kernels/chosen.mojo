"""Which experts a token is sent to, and the slots of all tokens sorted by expert: the first half of `experts.mojo`."""

from std.math import exp
from std.memory import Pointer
from std.utils.numerics import isnan

from .products import TILE_ROWS


def choose_experts(
    scores: Pointer[mut=_, Float32, _],
    scales: Pointer[mut=_, Float32, _],
    chosen: Pointer[mut=True, Int32, _],
    shares: Pointer[mut=True, Float32, _],
    experts: Int,
    each: Int,
):
    """The largest scores of a token, falling, of equal ones the first, and the softmax of these alone, scaled.

    A score that is no number is larger than none and could be passed over: it makes all shares none, as a softmax would.
    """
    var total = Float32(0)
    for expert in range(experts):
        if isnan(scores.unsafe_load(expert)):
            total = scores.unsafe_load(expert)
    for place in range(each):
        var best = -1
        for expert in range(experts):
            var is_taken = False
            for before in range(place):
                is_taken = is_taken or Int(chosen.unsafe_load(before)) == expert
            if is_taken:
                continue
            if best < 0 or scores.unsafe_load(expert) > scores.unsafe_load(best):
                best = expert
        chosen.unsafe_store(place, Int32(best))
        var share = exp(scores.unsafe_load(best) - scores.unsafe_load(Int(chosen.unsafe_load(0))))
        shares.unsafe_store(place, share)
        total += share
    for place in range(each):
        var scale = scales.unsafe_load(Int(chosen.unsafe_load(place)))
        shares.unsafe_store(place, shares.unsafe_load(place) / total * scale)


def sort_slots(
    chosen: Pointer[mut=_, Int32, _],
    order: Pointer[mut=True, Int32, _],
    starts: Pointer[mut=True, Int32, _],
    tiles: Pointer[mut=True, Int32, _],
    slots: Int,
    experts: Int,
) -> Int:
    """Slots by expert, as they come, and in tiles of at most twelve; returns how many tiles there are."""
    for expert in range(experts + 1):
        starts.unsafe_store(expert, Int32(0))
    for slot in range(slots):
        var behind = Int(chosen.unsafe_load(slot)) + 1
        starts.unsafe_store(behind, starts.unsafe_load(behind) + 1)
    var count = 0
    for expert in range(experts):
        var begin = Int(starts.unsafe_load(expert))
        var end = begin + Int(starts.unsafe_load(expert + 1))
        starts.unsafe_store(expert + 1, Int32(end))
        for first in range(begin, end, TILE_ROWS):
            tiles.unsafe_store(3 * count, Int32(expert))
            tiles.unsafe_store(3 * count + 1, Int32(first))
            tiles.unsafe_store(3 * count + 2, Int32(min(TILE_ROWS, end - first)))
            count += 1
    for slot in range(slots):
        var expert = Int(chosen.unsafe_load(slot))
        var place = starts.unsafe_load(expert)
        order.unsafe_store(Int(place), Int32(slot))
        starts.unsafe_store(expert, place + 1)
    return count
