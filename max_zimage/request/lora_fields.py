"""The field of a request that names adapters (LoRA); a part of the table in `fields`.

Imports no numpy, as that one.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from max_zimage.request.kinds import Kind
from max_zimage.request.loras import Lora, is_digest
from max_zimage.request.row import Flag, Images, Kept, Of, Responses, row

if TYPE_CHECKING:
    from max_zimage.request.limits import Limits

_SCALED = re.compile(
    r"(?P<file>.+):(?P<scale>[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf|infinity))", re.ASCII | re.I | re.S
)
"""A file and behind the last colon what reads as a number, those included that are then refused."""


@dataclass(frozen=True, kw_only=True)
class Loras(Kind):
    """Files with their scales; a request holds a tuple of `Lora`."""

    fallback: ClassVar[Any] = ()
    schema: ClassVar[Any] = list[str | dict[str, Any]]

    @override
    def check(self, name: str, value: object, limits: Limits) -> tuple[Lora, ...]:
        from max_zimage.request.lora_checks import checked_loras

        return checked_loras(name, value, limits.lora_files)

    @override
    def read(self, text: str) -> object:
        """JSON of a list, or one file as the command line has it."""
        if not text.lstrip().startswith("["):
            return [self.of_flag(text)]
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    @override
    def of_flag(self, text: str) -> object:
        found = _SCALED.fullmatch(text)
        return text if found is None else (found["file"], float(found["scale"]))

    @override
    def encode(self, value: Sequence[Lora]) -> object:
        return [asdict(each) for each in value]

    @override
    def decode(self, value: Any) -> tuple[Lora, ...]:
        if not isinstance(value, list) or not all(_is_entry(each, "path") for each in value):
            raise ValueError(f"must be a list of adapters with path, scale and digest, got {value!r}")
        return tuple(Lora(**each) for each in value)

    @override
    def keep(self, value: Sequence[Lora]) -> object:
        return [{"name": each.name, "scale": each.scale, "digest": each.digest} for each in value]

    @override
    def is_kept(self, value: object) -> bool:
        # A name that is a path would have whoever draws the picture again look into any folder.
        return isinstance(value, (list, tuple)) and all(
            _is_entry(each, "name") and PurePath(each["name"]).name == each["name"] for each in value
        )


def _is_entry(value: object, named: str) -> bool:
    if not isinstance(value, Mapping) or set(value) != {named, "scale", "digest"}:
        return False
    scale = value["scale"]
    is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool) and abs(scale) <= sys.float_info.max
    return isinstance(value[named], str) and is_number and is_digest(value["digest"])


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFields:
    """What is added to the weights for this request.

    Attributes:
        loras: Files that are added to the weights, each times its scale; empty for the weights as they are.
    """

    loras: tuple[Lora, ...] = row(
        Loras(),
        default=Of("loras"),
        flag=Flag("--lora", "FILE[:SCALE]", "add an adapter to the weights; repeatable", "fine tuning", repeated=True),
        images=Images("loras", "Adapters to add to the weights, by name and scale."),
        responses=Responses("loras", place="metadata", param="metadata"),
        kept=Kept("tuple[dict, ...]", since=4, before=()),
        shared="value",
    )
