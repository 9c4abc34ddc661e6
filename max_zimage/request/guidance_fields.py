"""The fields of a request that say how guidance is done, beside its scale: a part of the table in `fields`.

Imports no numpy, as that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from max_zimage.request.kinds import Choice, Kind, Number, Switch
from max_zimage.request.list_kinds import Pair, Wholes
from max_zimage.request.row import Flag, Images, Kept, Responses, Row, row

MAX_GUIDANCE = 1000.0
SLG_SCALE = 2.5
"""Of skip-layer guidance that is asked for without a scale."""

VARIANTS = ("cfg", "cfg_zero_star", "apg")


def _row(kind: Kind, flag: str, metavar: str, text: str, kept: str, *, default: object = None) -> Any:
    """A row that every front end calls by the same name."""
    name = flag.removeprefix("--").replace("-", "_")
    return row(
        kind,
        default=default,
        none_is_default=True,
        flag=Flag(flag, metavar, text, "guidance"),
        images=Images(name, f"{text[0].upper()}{text[1:]}."),
        responses=Responses(name, place="metadata", param="metadata"),
        kept=Kept(kept, since=4, before=default),
        shared="value",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class GuidanceFields:
    """How guidance is done.

    Attributes:
        guidance_interval: Share of the steps at which guidance begins, and at which it ends.
        guidance_variant: How the positive and the negative branch make a prediction.
        guidance_rescale: How far the prediction's spread becomes that of the positive branch, from 0 to 1.
        zero_init: Whether CFG-Zero* predicts nothing in the first evaluation.
        apg_eta: What of the difference along the positive branch counts.
        apg_momentum: What of the differences before is added; below 0 as a rule.
        apg_norm_threshold: Limit of the difference's norm; 0 for none.
        slg_scale: Skip-layer guidance is on above 0.
        slg_layers: Main layers that are left out of its branch; None for 7 to 12 of 30, and the same share of others.
        slg_start: Share of the steps before it begins.
        slg_stop: Share of the steps before it ends.
    """

    guidance_interval: tuple[float, float] = _row(
        Pair(), "--guidance-interval", "A B", "share of the steps in which guidance is on", "tuple[float, ...]",
        default=(0.0, 1.0),
    )  # fmt: skip
    guidance_variant: str = _row(
        Choice(words=VARIANTS), "--guidance-variant", "NAME", f"one of {', '.join(VARIANTS)}", "str", default="cfg"
    )
    guidance_rescale: float = _row(
        Number(high=1.0), "--guidance-rescale", "SHARE", "how far to bring back the prediction's spread", "float",
        default=0.0,
    )  # fmt: skip
    zero_init: bool = _row(
        Switch(), "--zero-init", "", "cfg_zero_star: predict nothing in the first evaluation", "bool", default=False
    )
    apg_eta: float = _row(
        Number(high=100.0, usual="0 to 1"), "--apg-eta", "X", "apg: what the part along the positive branch counts",
        "float", default=1.0,
    )  # fmt: skip
    apg_momentum: float = _row(
        Number(low=-1.0, high=1.0, usual="-0.75 to 0"), "--apg-momentum", "X", "apg: what of the steps before is added",
        "float", default=0.0,
    )  # fmt: skip
    apg_norm_threshold: float = _row(
        Number(float32=True), "--apg-norm-threshold", "X", "apg: limit of the difference's norm; 0 is none", "float",
        default=15.0,
    )  # fmt: skip
    slg_scale: float = _row(
        Number(high=MAX_GUIDANCE, usual="2 to 3", float32=True), "--slg-scale", "SCALE",
        "skip-layer guidance; 0 is off", "float", default=0.0,
    )  # fmt: skip
    slg_layers: tuple[int, ...] | None = _row(
        Wholes(limit="num_layers"), "--slg-layers", "N,N-N", "layers that are skipped; 7-12 of 30 if not given",
        "tuple[int, ...] | None",
    )  # fmt: skip
    slg_start: float = _row(
        Number(high=1.0), "--slg-start", "SHARE", "share of the steps before skipping begins", "float", default=0.05
    )
    slg_stop: float = _row(
        Number(high=1.0), "--slg-stop", "SHARE", "share of the steps before skipping ends", "float", default=0.5
    )


SLG = Row(
    argument="slg",
    kind=Switch(),
    is_checked_alone=False,
    flag=Flag("--slg", "", f"skip-layer guidance with scale {SLG_SCALE}", "guidance"),
    images=Images("slg", f"Whether to use skip-layer guidance, with scale {SLG_SCALE}."),
    responses=Responses("slg", place="metadata", param="metadata"),
)
"""Stands for a scale, and is not held by a request."""
