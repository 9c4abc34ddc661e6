"""What each figure should be, so that a surprise is seen at once: derived beforehand, or published by others.

Only cards that a figure was derived for are judged. Arithmetic is the same on an H100 and an H200; what moves through
memory takes 4/3 of the time on an H100, which is what its own figures are derived with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TOLERANCE = 0.1
"""Share by which a figure may miss before it is flagged."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What is expected of rows.

    Attributes:
        case: Pattern that the whole case matches.
        variant: The same of the variant.
        column: Which figure, see `results.Row.figures`.
        least: Lower bound; None for none.
        most: Upper bound; None for none.
        card: Part of the card's name.
    """

    case: str
    variant: str
    column: str
    least: float | None = None
    most: float | None = None
    card: str = ""

    def __str__(self) -> str:
        bounds = [f">= {self.least:.4g}"] if self.least is not None else []
        bounds += [f"<= {self.most:.4g}"] if self.most is not None else []
        return f"{self.column} {', '.join(bounds)}"

    def verdict(self, value: float | None) -> str:
        """Whether a value is as expected; a flag in capitals where it misses by more than the tolerance."""
        if value is None:
            return "MISSED: no value"
        if value != value:
            return "MISSED: not a number"
        least = self.least if self.least is not None else value
        most = self.most if self.most is not None else value
        if least <= value <= most:
            return "met"
        bound = least if value < least else most
        off = abs(value / bound - 1) if bound else float("inf")
        if off <= TOLERANCE:
            return f"{off:.0%} off"
        return f"MISSED: {value / bound:.2f} of it"


H100, H200 = "NVIDIA H100", "NVIDIA H200"
_BLOCK = r"block, 4160 tokens"
_ANY = r".*"

FIGURES = (
    # What such cards were seen to do.
    Figure(case="copy", variant="torch", column="gbyte_per_s", least=4200.0, card=H200),
    Figure(case="copy", variant="torch", column="gbyte_per_s", least=2900.0, card=H100),
    Figure(case="product 8192x8192x8192", variant="torch", column="gflop_per_s", least=769e3, card=H200),
    Figure(case="product 8192x8192x8192", variant="torch", column="gflop_per_s", least=769e3, card=H100),
    # A block: products 2.05, attention 0.95 or 0.5, element by element 0.6 or 0.17 ms.
    Figure(case=_BLOCK, variant="padded attention", column="median_s", least=3.3e-3, most=3.62e-3, card=H200),
    Figure(case=_BLOCK, variant="padded attention", column="median_s", least=3.5e-3, most=3.82e-3, card=H100),
    Figure(case=_BLOCK, variant="no valid length|ragged attention", column="median_s", most=3.20e-3, card=H200),
    Figure(case=_BLOCK, variant="no valid length|ragged attention", column="median_s", most=3.40e-3, card=H100),
    Figure(case=_BLOCK, variant=r"\+ rotary_heads, values apart", column="median_s", most=3.00e-3, card=H200),
    Figure(case=_BLOCK, variant=r"\+ gated_norms", column="median_s", most=2.82e-3, card=H200),
    Figure(case=_BLOCK, variant="own ops", column="median_s", most=2.75e-3, card=H200),
    Figure(case=_BLOCK, variant="own ops", column="median_s", most=2.81e-3, card=H100),
    Figure(
        case="attention, 4160 tokens", variant="padded", column="median_s", least=0.8e-3, most=0.95e-3, card="NVIDIA H"
    ),
    Figure(case="attention, 4160 tokens", variant="whole|ragged", column="gflop_per_s", least=480e3, card="NVIDIA H"),
    Figure(case="product .* 4160 tokens", variant="MAX", column="gflop_per_s", least=735e3, card="NVIDIA H"),
    Figure(case="queries and keys, 4160 tokens", variant="own op", column="median_s", most=35e-6, card=H200),
    Figure(case="queries and keys, 4160 tokens", variant="own op", column="median_s", most=47e-6, card=H100),
    Figure(case="gated norms, 4160 tokens", variant="own op", column="median_s", most=35e-6, card=H200),
    Figure(case="gated norms, 4160 tokens", variant="own op", column="median_s", most=47e-6, card=H100),
    Figure(case="swiglu, 4160 tokens", variant="own op", column="median_s", most=65e-6, card=H200),
    Figure(case="swiglu, 4160 tokens", variant="own op", column="median_s", most=87e-6, card=H100),
    Figure(case="decode 1024x1024", variant="ours", column="median_s", most=35e-3, card=H200),
    Figure(case="decode 1024x1024", variant="ours", column="median_s", most=40e-3, card=H100),
    # Pictures: 8 forwards of 88 ms and 48 ms for the rest.
    Figure(case="Turbo 1024x1024: denoise", variant=_ANY, column="median_s", most=88e-3, card=H200),
    Figure(case="Turbo 1024x1024: denoise", variant=_ANY, column="median_s", most=91e-3, card=H100),
    Figure(case="Turbo 1024x1024: text_encoder", variant="ours", column="median_s", most=10e-3, card=H200),
    Figure(case="Turbo 1024x1024: text_encoder", variant="replayed", column="median_s", most=4e-3, card=H200),
    Figure(case="Turbo 1024x1024: decode", variant="ours", column="median_s", most=35e-3, card=H200),
    Figure(case="Turbo 1024x1024: prompt to picture", variant="ours", column="median_s", most=0.75, card=H200),
    Figure(case="Turbo 1024x1024: prompt to picture", variant="ours", column="median_s", most=0.78, card=H100),
    Figure(
        case="Turbo 1024x1024: ours beside",
        variant="diffusers, .*blocks compiled",
        column="speedup",
        least=1.2,
        card="NVIDIA H",
    ),
    Figure(case="float8 product .*", variant="torch", column="gflop_per_s", least=1.3e6, card="NVIDIA H"),
)
"""All that is expected. The first one that fits a row's names and the card counts."""


def judged(
    case: str, variant: str, figures: Mapping[str, float | None], gpu: str, *, small: bool, allowed: float | None = None
) -> tuple[str, str]:
    """What is expected of a row, and whether it is so.

    Args:
        case: Of the row, and what follows.
        variant: See `results.Row`.
        figures: Its figures by column.
        gpu: Name of the card.
        small: Whether sizes are small, of which no speed is expected.
        allowed: Largest relative error that is right, on any card and at any size; None where none was measured.

    Returns:
        Both empty where nothing is expected.
    """
    found = [Figure(case=case, variant=variant, column="relative_l2", most=allowed)] if allowed is not None else []
    if not small:
        found += [each for each in FIGURES if each.card in gpu and _fits(each, case, variant)]
    if not found:
        return "", ""
    return str(found[0]), found[0].verdict(figures[found[0].column])


def _fits(figure: Figure, case: str, variant: str) -> bool:
    return all(re.fullmatch(*each) for each in ((figure.case, case), (figure.variant, variant)))
