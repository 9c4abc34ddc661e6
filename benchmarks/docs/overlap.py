"""How far copies of streamed blocks hide behind what is computed: `python -m benchmarks.docs.overlap`, for memory.md.

Derived, of no measurement: two queues go through a forward in the order of `max_zimage.device.offload.Blocks`, with the
bytes of a block, the rate of the bus, and a block's FLOP at the rate of the GPU. A test holds page and model equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import ROOT
from max_zimage.checkpoint.blocks import streams_of
from max_zimage.checkpoint.derived import derived_plans
from max_zimage.compile import work
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.components.streamed import spread
from max_zimage.device.offload import PLACES
from max_zimage.sampling.positions import PIXELS_PER_TOKEN, padded

PAGE = ROOT / "docs" / "memory.md"
BEGIN, END = "<!-- overlap: written by python -m benchmarks.docs.overlap -->\n", "<!-- end -->"
PCIE_4 = 25e9
"""Bytes per second that 16 lanes carry from page-locked memory, `reference/weights.md` section 4.4."""
HOPPER = 620e12
"""FLOP per second that a block of docs/gpu.md comes to: 55.6 TFLOP in 32 of 2.75 ms, ends included."""
_RATES = {"50 TFLOP/s": 50e12, "100 TFLOP/s": 100e12, "200 TFLOP/s": 200e12, "Hopper, 620 TFLOP/s": HOPPER}
_SIDES = (512, 1024, 2048)
_CAPTION = 64
_COUNT = FULL_MODEL.transformer.num_layers
_CARDS = {"12 GiB": 22, "8 GiB": 10, "4 GiB": 0}
"""Card -> blocks that stay there, `max-zimage info --memory`."""


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Seconds of the main layers.

    Attributes:
        whole: With streamed blocks.
        computed: Without.
    """

    whole: float
    computed: float


def forward(count: int, stay: int, compute: float, copy: float, passes: int = 4) -> Forward:
    """Go through several forwards and time the last one.

    Args:
        count: Main layers.
        stay: Of which so many stay.
        compute: Seconds of a layer.
        copy: Seconds of its copy.
        passes: Forwards.
    """
    streamed = spread(count, stay)
    order = sorted(streamed)
    behind = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    computing = copying = 0.0
    arrives = dict.fromkeys(order[:1], copy)  # block -> when it is there
    copying = copy if order else 0.0
    began = 0.0
    for _ in range(passes):
        began = computing
        for layer in range(count):
            if layer in streamed:
                computing = max(computing, arrives[layer])
                # Into the place that the layer before has left, while this one is computed.
                copying = max(copying, computing) + copy
                arrives[behind[layer]] = copying
            computing += compute
    return Forward(whole=computing - began, computed=count * compute)


def layer_flops(side: int) -> int:
    """Of one main layer over a picture and its caption, without guidance."""
    tokens = padded(side * side // PIXELS_PER_TOKEN**2) + _CAPTION
    return work.block(FULL_MODEL.transformer, 1, tokens, 2).flops


def block_bytes() -> int:
    """Of one main layer in bfloat16."""
    return streams_of(derived_plans(FULL_MODEL)["transformer"], "bfloat16", FULL_MODEL.transformer).block


def rendered(text: str) -> str:
    """The page with its table made anew.

    Raises:
        ValueError: If it has no place for it.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} needs the lines {BEGIN.strip()!r} and {END!r}")
    return f"{before}{BEGIN}{_table()}{END}{after}"


def _table() -> str:
    nbytes = block_bytes()
    copy = nbytes / PCIE_4
    cards = " | ".join(f"{card}, forward in ms" for card in _CARDS)
    lines = [
        f"A block has {nbytes / 1e6:.1f} MB in bfloat16 and is copied in {1000 * copy:.1f} ms; {PLACES} have places.\n",
        f"| GPU | pixels | a block computed, ms | {cards} | resident |",
        f"|---|---|---:|{'---:|' * len(_CARDS)}---:|",
    ]
    for name, rate in _RATES.items():
        for side in _SIDES:
            compute = layer_flops(side) / rate
            times = [forward(_COUNT, stay, compute, copy) for stay in _CARDS.values()]
            cells = [f"{1000 * each.whole:,.0f} ({each.whole / each.computed:.2f}x)" for each in times]
            row = [name, f"{side}x{side}", f"{1000 * compute:.1f}", *cells, f"{1000 * times[0].computed:,.0f}"]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table."""
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
