"""The fields of a request that is drawn in several passes, or small at first; a part of the table in `fields`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from max_zimage.request import passes as words
from max_zimage.request.kinds import Choice, Kind, Number
from max_zimage.request.passes import Pass
from max_zimage.request.row import Flag, Images, Kept, Responses, row

if TYPE_CHECKING:
    from max_zimage.request.limits import Limits

LANCZOS, BICUBIC = UPSCALES = ("lanczos", "bicubic")


@dataclass(frozen=True, kw_only=True)
class Passes(Kind):
    """Passes, as a list, as JSON of one, or in one word; a request holds a tuple of `Pass`."""

    schema: ClassVar[Any] = str | list[dict[str, Any]]

    @override
    def check(self, name: str, value: object, limits: Limits) -> Any:
        from max_zimage.request.passes_values import checked_passes

        return checked_passes(name, value, limits)

    @override
    def encode(self, value: Sequence[Pass] | None) -> object:
        return None if value is None else words.written(value)

    @override
    def decode(self, value: Any) -> tuple[Pass, ...]:
        try:
            given: list[dict[str, Any]] = words.read(super().decode(value))
            found = tuple(Pass(**{"strength": 1.0, **each}) for each in given)
            known = words.written(found) == value
        except TypeError:
            known = False
        if not known:
            raise ValueError(f"must be passes such as 0.5x9,1.0x9:0.5, got {value!r}")
        return found

    @override
    def is_kept(self, value: object) -> bool:
        return self.is_decoded(value)


@dataclass(frozen=True, kw_only=True, eq=False)
class PassFields:
    """In how many runs a picture is drawn, and in which sizes.

    Attributes:
        passes: The first one from noise, each other from the picture of the one before, resized; None for a single run.
        upscale: How it is resized: the picture with Lanczos' filter, or the latents by bicubic interpolation.
        progressive: Share of the steps that are taken with half of both sides, below 1; 0 for none.
    """

    passes: tuple[Pass, ...] | None = row(
        Passes(),
        flag=Flag("--passes", "SCALExSTEPS:STRENGTH,...", "draw in several passes, as 0.5x9,1.0x9:0.5", "passes"),
        images=Images("passes", "Passes: a list of scale, steps, strength, shift, guidance_scale; or 0.5x9,1.0x9:0.5."),
        responses=Responses("passes", place="metadata", param="metadata"),
        kept=Kept("str | None", since=4),
        shared="value",
    )
    upscale: str = row(
        Choice(words=UPSCALES),
        default=LANCZOS,
        flag=Flag("--upscale", "NAME", "between passes: lanczos, of the picture, or bicubic, of the latents", "passes"),
        images=Images("upscale", "Between passes: lanczos, of the picture, or bicubic, of the latents."),
        responses=Responses("upscale", place="metadata", param="metadata"),
        kept=Kept("str", since=4, before=LANCZOS),
        shared="value",
    )
    progressive: float = row(
        Number(high=1.0),
        default=0.0,
        flag=Flag("--progressive", "SHARE", "share of the steps with half of both sides; 0 is none", "passes"),
        images=Images("progressive", "Share of the steps that are taken with half of both sides; 0 is none."),
        responses=Responses("progressive", place="metadata", param="metadata"),
        kept=Kept("float", since=4, before=0.0),
        shared="value",
    )
