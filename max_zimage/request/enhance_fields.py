"""The fields of a request whose prompts an enhancer writes out, and what remains of that; a part of the table.

A request is validated with the prompts as they were given. Whoever has an enhancer then puts its texts in their place,
see `max_zimage.enhancer.apply`; nothing behind that knows of enhancers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from max_zimage.request.kinds import Switch, Text, Texts, Whole
from max_zimage.request.row import Flag, Images, Kept, Responses, row
from max_zimage.sampling.ranges import MAX_SEED

if TYPE_CHECKING:
    from max_zimage.request.limits import Limits

_FORMAT = 5


@dataclass(frozen=True, kw_only=True)
class Originals(Texts):
    """Prompts as they were given, one for each that is drawn; a request holds a tuple of them."""

    fallback: ClassVar[Any] = ()

    @override
    def check(self, name: str, value: object, limits: Limits) -> tuple[str, ...]:
        from max_zimage.request.checks import texts

        return () if value in ((), []) else texts(name, value, limits.max_images)


@dataclass(frozen=True, kw_only=True, eq=False)
class EnhanceFields:
    """Prompts that are written out before they are drawn.

    Attributes:
        enhance: Whether an enhancer is still to do so.
        enhance_seed: Draws its words; None for the seed of the first picture.
        original_prompts: What the prompts were before, one for each; empty where they are drawn as they were given.
        enhanced_by: Who wrote them; empty likewise.
    """

    enhance: bool = row(
        Switch(),
        default=False,
        flag=Flag(
            "--enhance",
            "MODEL",
            "write the prompt out first: embedded, encoder, a folder of DiffusionGemma or an http(s) address; what is "
            "configured or goes with the checkpoint if none is named",
            "enhancing the prompt",
        ),
        images=Images("enhance", "Whether the server's enhancer writes the prompt out, which revised_prompt has."),
        responses=Responses("enhance", place="metadata", param="metadata"),
    )
    enhance_seed: int | None = row(
        Whole(low=0, high=MAX_SEED),
        flag=Flag(
            "--enhance-seed", "N", "draws the enhancer's words; the picture's seed if not given", "enhancing the prompt"
        ),
        images=Images("enhance_seed", "Draws the enhancer's words; the first picture's seed if not given."),
        responses=Responses("enhance_seed", place="metadata", param="metadata"),
    )
    original_prompts: tuple[str, ...] = row(
        Originals(),
        argument="original_prompt",
        default=(),
        kept=Kept("str", since=_FORMAT, before=""),
    )
    enhanced_by: str = row(Text(), default="", kept=Kept("str", since=_FORMAT, before=""))
