"""Where components go, by sizes alone: the published model on cards of five sizes, and what is said of what fits none.

Needs are in bytes, from `reference/weights.md` sections 2.1 and 4.1: bfloat16 weights of 12.31, 7.84 and 0.17 GB, a
guided step of 0.84, a decode of 1.61 (0.40 in tiles) and a text encoder's work of 0.04 GB at 1024x1024 pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.device.placement import place, with_peaks
from max_zimage.device.plans import HOST, RESERVED, STAGES, Change, Need, Plan, Streams, Wish, usable, weights_beside
from max_zimage.errors import RequestError

CARD = "gpu:0"
GB, GIB = 10**9, 2**30
ON_CARD = Wish(devices=dict.fromkeys(STAGES, CARD))


def gb(number: float) -> int:
    return round(number * GB)


BF16 = {
    "text_encoder": Need(weights=gb(7.84), work=gb(0.04)),
    "transformer": Need(weights=gb(12.31), work=gb(0.84)),
    "vae": Need(weights=gb(0.17), work=gb(1.61)),
}
FP8 = {**BF16, "transformer": Need(weights=gb(6.3), work=gb(0.84))}
Q4 = {**BF16, "transformer": Need(weights=gb(3.7), work=gb(0.84))}
TILED = {"vae": Need(weights=gb(0.17), work=gb(0.40))}


def card(gib: float, host: float = 64) -> dict[str, int]:
    return {CARD: usable(round(gib * GIB)), HOST: round(host * GIB)}


@pytest.mark.parametrize(
    ("gib", "needs", "residency", "alone", "encoder", "peak"),
    [
        # All of it: 7.84 + 12.31 + 0.17 + 1.61.
        (24, BF16, "resident", False, CARD, 21.93),
        # In turns: the transformer, the autoencoder and a decode.
        (16, BF16, "sequential", False, CARD, 14.09),
        # 8-bit transformers: the text encoder's own stage is the largest, or the decode beside the transformer.
        (12, FP8, "sequential", False, CARD, 8.08),
        (8, {**FP8, **TILED}, "sequential", False, HOST, 7.31),
        (8, Q4, "sequential", False, HOST, 5.48),
        (4, {**Q4, **TILED}, None, False, "", 0),
        # bfloat16 that cannot be streamed fits no card of 12 GiB and less.
        (12, BF16, None, False, "", 0),
        (8, BF16, None, False, "", 0),
    ],
    ids=lambda value: str(value) if isinstance(value, (int, str, float)) else "",
)
def test_the_published_model_on_cards(
    gib: float, needs: dict[str, Need], residency: str | None, alone: bool, encoder: str, peak: float
) -> None:
    if residency is None:
        with pytest.raises(NotEnoughMemoryError, match="the model does not fit"):
            place(needs, card(gib), ON_CARD)
        return
    plan = place(needs, card(gib), ON_CARD)
    assert plan.devices["text_encoder"] == encoder
    assert (plan.devices["transformer"], plan.devices["vae"]) == (CARD, CARD)
    assert plan.decodes_alone is alone
    if encoder == CARD:
        assert plan.residency == residency
    assert plan.peaks[CARD] == pytest.approx(gb(peak), rel=0.002)
    assert plan.peaks[CARD] <= gib * GIB - RESERVED


BLOCK, AROUND = gb(0.354), gb(12.31) - 30 * gb(0.354)
STREAMED = {**BF16, "transformer": replace(BF16["transformer"], streams=Streams(count=30, block=BLOCK, around=AROUND))}


@pytest.mark.parametrize(
    ("gib", "needs", "streamed", "alone", "encoder", "peak"),
    [
        # Eight streamed blocks, as `reference/weights.md` section 4.2 has it; five where decoding is tiled.
        (12, STREAMED, 8, False, CARD, 1.69 + 24 * 0.354 + 0.17 + 1.61),
        (12, {**STREAMED, **TILED}, 5, False, CARD, 1.69 + 27 * 0.354 + 0.17 + 0.84),
        # The text encoder has no room at all, with the autoencoder beside it.
        (8, STREAMED, 20, False, HOST, 1.69 + 12 * 0.354 + 0.17 + 1.61),
        # Two blocks at a time, and decoding when they are gone.
        (4, STREAMED, 30, True, HOST, 1.69 + 2 * 0.354 + 0.17 + 0.84),
        # Where everything fits otherwise, nothing is streamed.
        (16, STREAMED, 0, False, CARD, 14.09),
    ],
)
def test_blocks_are_streamed_where_the_transformer_does_not_fit(
    gib: float, needs: dict[str, Need], streamed: int, alone: bool, encoder: str, peak: float
) -> None:
    plan = place(needs, card(gib), ON_CARD)
    assert plan.residency == ("streamed" if streamed else "sequential")
    assert (plan.stay, plan.decodes_alone) == (30 - streamed if streamed else 0, alone)
    assert plan.devices["text_encoder"] == encoder
    assert plan.peaks[CARD] == pytest.approx(gb(peak), rel=0.002)
    assert plan.peaks[CARD] <= gib * GIB - RESERVED
    if streamed:
        assert f"{streamed} of the transformer's 30 blocks are streamed" in plan.why
        # What comes in turn waits in the host's memory, and one more is read there.
        alone_there = gb(7.84) + gb(0.04) if encoder == HOST else 0
        assert plan.peaks[HOST] == max((streamed + 1) * BLOCK, alone_there)


def test_a_budget_of_streamed_blocks_is_kept_to_the_byte() -> None:
    """By hand: around 20, blocks of 10, of which two have places that are not among those that stay."""
    streams = Streams(count=8, block=10, around=20, passing=3)
    needs = {
        "text_encoder": Need(weights=30, work=1),
        "transformer": Need(weights=100, work=7, streams=streams),
        "vae": Need(weights=5, work=6),
    }
    asked = Wish(placement="streamed", devices=dict.fromkeys(STAGES, HOST))

    def stay(budget: int) -> int:
        plan = place(needs, {HOST: 2**40}, replace(asked, max_memory=budget))
        assert plan.peaks[HOST] <= budget
        return plan.stay

    # A CPU reads a part of a block beside the two places.
    whole = 20 + 80 + 7 + 5 + 3
    assert stay(whole) == 8
    assert stay(whole - 1) == 5
    assert stay(20 + 20 + 7 + 5 + 3 + 10) == 1
    assert stay(20 + 20 + 7 + 5 + 3 + 9) == 0
    assert stay(20 + 20 + 7 + 5 + 3) == 0
    with pytest.raises(NotEnoughMemoryError, match=r"cpu has 54 bytes for them, 55 bytes are needed; max_memory="):
        stay(20 + 20 + 7 + 5 + 3 - 1)
    assert with_peaks(Plan(devices=asked.devices, residency="streamed", stay=2), needs).peaks == {HOST: 75}


def test_what_a_stage_needs_is_what_is_there_and_its_work() -> None:
    """Peaks by hand, of five numbers that tell them apart."""
    needs = {
        "text_encoder": Need(weights=100, work=7),
        "transformer": Need(weights=200, work=30),
        "vae": Need(weights=10, work=500),
    }
    plain = Plan(devices=dict.fromkeys(STAGES, CARD))
    assert with_peaks(plain, needs).peaks == {CARD: 810}
    turns = replace(plain, residency="sequential")
    assert with_peaks(turns, needs).peaks == {CARD: 710}
    assert with_peaks(replace(turns, decodes_alone=True), needs).peaks == {CARD: 510}
    apart = replace(plain, devices={"text_encoder": HOST, "transformer": CARD, "vae": CARD})
    assert with_peaks(apart, needs).peaks == {HOST: 107, CARD: 710}
    small = {**needs, "vae": Need(weights=10, work=5)}
    assert with_peaks(replace(turns, decodes_alone=True), small).peaks == {CARD: 240}


def test_the_first_that_fits_is_taken_and_no_byte_more() -> None:
    needs = {name: Need(weights=100, work=10) for name in STAGES}

    def chosen(there: int, host: int = 0) -> tuple[str, bool, str]:
        plan = place(needs, {CARD: there, HOST: host}, ON_CARD)
        return plan.residency, plan.decodes_alone, plan.devices["text_encoder"]

    assert chosen(310) == ("resident", False, CARD)
    assert chosen(309) == ("sequential", False, CARD)
    assert chosen(210) == ("sequential", False, CARD)
    with pytest.raises(NotEnoughMemoryError):
        chosen(209, 2**40)
    # What moves is the text encoder, where it alone is too large, and the CPU has room.
    large = {**needs, "text_encoder": Need(weights=1000, work=10)}
    plan = place(large, {CARD: 210, HOST: 1010}, ON_CARD)
    assert (plan.devices["text_encoder"], plan.residency) == (HOST, "resident")
    with pytest.raises(NotEnoughMemoryError):
        place(large, {CARD: 210, HOST: 1009}, ON_CARD)
    # A device that somebody named is that one.
    with pytest.raises(NotEnoughMemoryError, match=r'encoder_device="cpu" would fit'):
        place(large, {CARD: 210, HOST: 1010}, replace(ON_CARD, named=frozenset({"text_encoder"})))


def test_a_decode_that_does_not_fit_beside_the_transformer_has_it_leave() -> None:
    needs = {**BF16, "vae": Need(weights=gb(0.17), work=gb(6.44))}
    plan = place(needs, card(16), ON_CARD)
    assert (plan.residency, plan.decodes_alone) == ("sequential", True)
    assert plan.peaks[CARD] == gb(0.17) + max(gb(6.44), gb(12.31) + gb(0.84), gb(7.84) + gb(0.04))
    assert "the transformer leaves before decoding" in plan.why


def test_a_refusal_has_a_table_and_the_smallest_change_that_fits() -> None:
    tiles = Change('vae_tiling="blend"', {**BF16, **TILED})
    small = Change("512x512 pixels", {name: replace(each, work=0) for name, each in BF16.items()})
    tight = {CARD: gb(13.4), HOST: 0}
    # Beside the transformer the step fits; so in turns it is no matter how it is decoded.
    assert place(BF16, tight, ON_CARD).decodes_alone
    wish = replace(ON_CARD, placement="resident")
    with pytest.raises(NotEnoughMemoryError) as caught:
        place(BF16, tight, wish, [tiles, small])
    first, *rows = str(caught.value).splitlines()
    assert first.startswith("the model does not fit (placement resident): gpu:0 has 12.5 GiB for them, 20.4 GiB are")
    assert first.endswith('; placement="sequential" would fit')
    assert [row.split()[0] for row in rows] == list(STAGES)
    assert "weights  11.5 GiB, work   801 MiB" in rows[1]
    large = {**BF16, "vae": Need(weights=gb(0.17), work=gb(20))}
    with pytest.raises(NotEnoughMemoryError, match=r'; vae_tiling="blend" would fit'):
        place(large, tight, ON_CARD, [tiles, small])
    with pytest.raises(NotEnoughMemoryError, match=r"; 512x512 pixels would fit"):
        place(large, {CARD: gb(12.5), HOST: 0}, ON_CARD, [tiles, small])
    with pytest.raises(NotEnoughMemoryError, match=r"nothing that could be changed would fit: take a larger device"):
        place(large, {CARD: gb(2), HOST: 0}, ON_CARD, [tiles, small])


def test_a_budget_is_kept_to_the_byte_and_a_refusal_names_one_that_would_do() -> None:
    needs = {name: Need(weights=100 * 2**20, work=10 * 2**20) for name in STAGES}
    there = {CARD: 2**40, HOST: 0}
    exact = replace(ON_CARD, max_memory=310 * 2**20)
    assert place(needs, there, exact).residency == "resident"
    assert place(needs, there, replace(exact, max_memory=310 * 2**20 - 1)).residency == "sequential"
    with pytest.raises(NotEnoughMemoryError, match=r'max_memory="210MiB" would fit') as caught:
        place(needs, there, replace(exact, max_memory=210 * 2**20 - 1))
    assert "gpu:0 has 210 MiB for them, 310 MiB are needed" in str(caught.value)
    # It bounds the transformer's device, not the others.
    apart = replace(exact, devices={**exact.devices, "text_encoder": HOST}, max_memory=210 * 2**20)
    assert place(needs, {CARD: 2**40, HOST: 2**40}, apart).residency == "resident"


def test_why_is_said_in_words() -> None:
    plan = place(BF16, card(16), ON_CARD)
    assert plan.why == (
        "text encoder and transformer take turns: text encoder, transformer and vae on gpu:0, about 13.1 GiB of 15.4 "
        "GiB (with all of them there it would be 20.4 GiB)"
    )
    asked = place(BF16, card(24), replace(ON_CARD, placement="sequential"))
    assert "it would be" not in asked.why
    only = {name: BF16[name] for name in ("transformer", "vae")}
    assert place(only, card(24), ON_CARD).why.startswith("all stay in memory: transformer and vae on gpu:0, about 13.1")


def test_a_plan_goes_to_another_process() -> None:
    plan = place(BF16, card(16), ON_CARD)
    assert Plan.from_json(plan.to_json()) == plan


def test_who_leaves_for_whom() -> None:
    plan = Plan(devices=dict.fromkeys(STAGES, CARD), residency="sequential")
    assert {name: plan.others_of(name) for name in STAGES} == {
        "text_encoder": ("transformer",),
        "transformer": ("text_encoder",),
        "vae": (),
    }
    sizes = {"text_encoder": 100, "transformer": 10, "vae": 1}
    assert weights_beside(CARD, plan, "transformer", sizes) == 1
    assert weights_beside(CARD, replace(plan, residency="resident"), "transformer", sizes) == 101
    apart: dict[str, Any] = {**plan.devices, "vae": HOST}
    assert weights_beside(CARD, replace(plan, residency="resident", devices=apart), "transformer", sizes) == 100


def test_blocks_that_cannot_be_streamed_are_said() -> None:
    for needs in (BF16, {"text_encoder": BF16["text_encoder"]}):
        with pytest.raises(RequestError, match="placement must be one of auto, resident, sequential, got streamed: "):
            place(needs, card(24), replace(ON_CARD, placement="streamed"))
