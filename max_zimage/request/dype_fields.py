"""The fields of a request that say how positions beyond the size of training are extrapolated; part of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from max_zimage.request.kinds import Choice, Kind, Number, Side
from max_zimage.request.row import Flag, Images, Kept, Responses, row

DYPE_OFF = "off"
VISION_YARN = "vision_yarn"
DYPE_METHODS = (VISION_YARN, "yarn", "ntk")


def _row(kind: Kind, flag: Flag, kept: str, default: object) -> Any:
    """A row that every front end calls by the same name."""
    name = flag.destination
    return row(
        kind,
        default=default,
        flag=flag,
        images=Images(name, f"{flag.help[0].upper()}{flag.help[1:]}."),
        responses=Responses(name, place="metadata", param="metadata"),
        kept=Kept(kept, since=4, before=default),
        shared="value",
    )


def _number(kind: Kind, flag: str, metavar: str, text: str, default: float) -> Any:
    return _row(kind, Flag(flag, metavar, text, "fine tuning"), "float", default)


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
        Choice(words=(DYPE_OFF, *DYPE_METHODS)),
        Flag(
            "--dype",
            "METHOD",
            f"position extrapolation of large pictures: {DYPE_OFF}, {', '.join(DYPE_METHODS)}",
            "fine tuning",
            bare=VISION_YARN,
        ),
        "str",
        DYPE_OFF,
    )
    dype_scale: float = _number(
        Number(above=True, high=100.0, usual="1 to 4"),
        "--dype-scale",
        "X",
        "dype: how strongly it follows the noise",
        2.0,
    )
    dype_exponent: float = _number(
        Number(high=100.0, usual="1 to 3"), "--dype-exponent", "X", "dype: how soon it ends as noise goes", 2.0
    )
    dype_start_sigma: float = _number(
        Number(above=True, high=1.0),
        "--dype-start-sigma",
        "LEVEL",
        "vision_yarn: full magnitude above this noise level",
        1.0,
    )
    dype_base_resolution: int = _row(
        Side(limit=16384),
        Flag("--dype-base-resolution", "PIXELS", "dype: side of pictures that the model was trained at", "fine tuning"),
        "int",
        1024,
    )
