"""The fields of a request that say how positions beyond the size of training are extrapolated; part of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from max_zimage.request.kinds import Choice, Kind, Number, Side
from max_zimage.request.row import Flag, Images, Kept, Responses, row

DYPE_OFF = "off"
VISION_YARN = "vision_yarn"
DYPE_METHODS = (VISION_YARN, "yarn", "ntk")


def _row(
    kind: Kind, flag: str, metavar: str, text: str, kept: str, default: object, bare: str = "", *others: str
) -> Any:
    """A row that every front end calls by the same name."""
    name, alone = flag.removeprefix("--").replace("-", "_"), f"; {bare} if none is named" if bare else ""
    return row(
        kind,
        default=default,
        flag=Flag(flag, metavar, text + alone, "fine tuning", others=others, bare=bare),
        images=Images(name, f"{text[0].upper()}{text[1:]}."),
        responses=Responses(name, place="metadata", param="metadata"),
        kept=Kept(kept, since=4, before=default),
        shared="value",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class DypeFields:
    """Dynamic position extrapolation; see `max_zimage.sampling.positions.dype`.

    Attributes:
        dype: "off", or how rotary frequencies are chosen in pictures larger than `dype_base_resolution`: "vision_yarn",
            "yarn" or "ntk".
        dype_scale: How strongly they move with the noise level.
        dype_exponent: How soon that ends as noise is taken away.
        dype_start_sigma: Noise level above which vision_yarn has its full magnitude, in (0, 1].
        dype_base_resolution: Side of the pictures that the model was trained at, in pixels, a multiple of 16.
    """

    dype: str = _row(
        Choice(words=(DYPE_OFF, *DYPE_METHODS)), "--dype", "METHOD",
        f"position extrapolation of large pictures: {DYPE_OFF}, {', '.join(DYPE_METHODS)}", "str",
        DYPE_OFF, VISION_YARN, "--dype-method",
    )  # fmt: skip
    dype_scale: float = _row(
        Number(above=True, high=100.0, usual="1 to 4"), "--dype-scale", "X", "dype: how strongly it follows the noise",
        "float", 2.0,
    )  # fmt: skip
    dype_exponent: float = _row(
        Number(high=100.0, usual="1 to 3"), "--dype-exponent", "X", "dype: how soon it ends as noise goes", "float", 2.0
    )
    dype_start_sigma: float = _row(
        Number(above=True, high=1.0), "--dype-start-sigma", "LEVEL",
        "vision_yarn: full magnitude above this noise level", "float", 1.0,
    )  # fmt: skip
    dype_base_resolution: int = _row(
        Side(limit=16384), "--dype-base-resolution", "PIXELS", "dype: side of pictures that the model was trained at",
        "int", 1024,
    )  # fmt: skip
