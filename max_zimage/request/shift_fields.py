"""The fields of a request that say how far noise levels are shifted, and to which last one; a part of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from max_zimage.request.kinds import Number, Switch
from max_zimage.request.row import Flag, Images, Kept, Responses, row
from max_zimage.sampling.ranges import MAX_SHIFT, MIN_SHIFT

if TYPE_CHECKING:
    from max_zimage.request.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Inner(Number):
    """A number above 0 and below 1."""

    @override
    def check(self, name: str, value: object, limits: Limits) -> float:
        from max_zimage.request.value_checks import inner

        return inner(name, value)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShiftFields:
    """How far noise levels are moved towards 1.

    Attributes:
        shift: Takes the place of the checkpoint's shift.
        dynamic_shift: Whether the shift grows with the picture; None for as the checkpoint has it.
        shift_terminal: The last level before 0, to which the shifted ones are stretched; None for as the checkpoint has
            it.
    """

    shift: float | None = row(
        Number(above=True, low=MIN_SHIFT, high=MAX_SHIFT, usual="1 to 10"),
        flag=Flag("--shift", "X", "in place of the shift of the checkpoint's schedule", "fine tuning"),
        images=Images("shift", "In place of the schedule's shift."),
        responses=Responses("flow_shift"),
        kept=Kept("float | None"),
        shared="levels",
    )
    dynamic_shift: bool | None = row(
        Switch(is_left_to_checkpoint=True),
        flag=Flag(
            "--dynamic-shift",
            "",
            "whether the shift grows with the picture or is one for all sizes; the checkpoint's if not given",
            "fine tuning",
        ),
        images=Images("dynamic_shift", "Whether the shift grows with the picture; the checkpoint's if not given."),
        responses=Responses("dynamic_shift", place="metadata", param="metadata"),
        kept=Kept("bool | None", since=6),
        shared="value",
    )
    shift_terminal: float | None = row(
        Inner(),
        flag=Flag(
            "--shift-terminal", "LEVEL", "last noise level before 0, to which others are stretched", "fine tuning"
        ),
        images=Images("shift_terminal", "Last noise level before 0, to which the shifted ones are stretched."),
        responses=Responses("shift_terminal", place="metadata", param="metadata"),
        kept=Kept("float | None", since=6),
        shared="levels",
    )
