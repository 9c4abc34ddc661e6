"""The fields of a request that say how normalized attention guidance is done; a part of the table in `fields`.

Defaults are those of the method's authors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from max_zimage.request.guidance_fields import MAX_GUIDANCE
from max_zimage.request.kinds import Kind, Number
from max_zimage.request.row import Flag, Images, Kept, Responses, row

if TYPE_CHECKING:
    from max_zimage.request.limits import Limits

NAG_SCALE, LEAST_SCALE = 5.0, 1.0
"""A scale that is usual, and the one that changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Scale(Number):
    """0 for off, or at least 1: below that the guided tokens would go towards the negative prompt."""

    @override
    def check(self, name: str, value: object, limits: Limits) -> Any:
        from max_zimage.errors import RequestError

        found = super().check(name, value, limits)
        if 0 < found < LEAST_SCALE:
            message = "{field} must be 0, which is off, or from {least:g} to {high:g}, got {given}; usual are {usual}"
            values = {"least": LEAST_SCALE, "high": self.high, "given": found, "usual": self.usual}
            raise RequestError.of(name, message, **values)
        return found


def _row(kind: Kind, name: str, flag: str, metavar: str, text: str, default: float) -> Any:
    """A row that every front end but the command line calls by the same name."""
    return row(
        kind,
        default=default,
        flag=Flag(flag, metavar, text, "guidance"),
        images=Images(name, f"{text[0].upper()}{text[1:]}."),
        responses=Responses(name, place="metadata", param="metadata"),
        kept=Kept("float", since=4, before=default),
        shared="value",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class NagFields:
    """How normalized attention guidance is done; see `max_zimage.graphs.model.normalized_attention`.

    Attributes:
        nag_scale: How far from the negative prompt; on from 1, 0 is off. In the place of guidance.
        nag_tau: How much larger a token may become, at least 1.
        nag_alpha: What of the guided token counts, above 0 and at most 1.
        nag_sigma_end: The noise level below which it is off.
    """

    nag_scale: float = _row(
        Scale(high=MAX_GUIDANCE, usual="3 to 11"), "nag_scale", "--nag", "SCALE",
        f"normalized attention guidance, for a negative prompt without guidance: {NAG_SCALE:g}, say; 0 is off", 0.0,
    )  # fmt: skip
    nag_tau: float = _row(
        Number(low=1.0, high=MAX_GUIDANCE, usual="1.5 to 5"), "nag_tau", "--nag-tau", "X",
        "nag: how much larger a token may become", 2.5,
    )  # fmt: skip
    nag_alpha: float = _row(
        Number(above=True, high=1.0, usual="0.125 to 0.5"), "nag_alpha", "--nag-alpha", "SHARE",
        "nag: what of the guided token counts, above 0", 0.25,
    )  # fmt: skip
    nag_sigma_end: float = _row(
        Number(high=1.0, usual="0 to 0.75"), "nag_sigma_end", "--nag-sigma-end", "LEVEL",
        "nag: noise level below which it is off", 0.0,
    )  # fmt: skip
