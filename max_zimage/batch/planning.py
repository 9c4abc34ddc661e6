"""Rows to batches: each row checked as a request, and those of equal size and schedule put together."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from max_zimage.batch.addresses import absolute
from max_zimage.batch.columns import problem_of, values_of
from max_zimage.batch.pictures_in import contents_of, digests_of, pixels_of
from max_zimage.batch.records import Record, record
from max_zimage.batch.source import RawRow
from max_zimage.batch.work import Item, Unit, Window
from max_zimage.errors import RequestError, RequestWarning
from max_zimage.pipeline.captions import tokens_of_request
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.request.configured import with_configured
from max_zimage.request.fields import ROWS
from max_zimage.request.legs import legs_of
from max_zimage.request.request import GenerationRequest
from max_zimage.request.wire import sharing_key, to_text

_SEED_BITS = 32  # as many as most tools take
_TO_BE_READ = object()
"""Stands for a picture among values, until it is read."""


@dataclass(frozen=True)
class Planner:
    """Makes windows of rows.

    Attributes:
        prepared: The checkpoint, which need not be loaded.
        defaults: Argument of a request -> what a row gets that says nothing of it; pictures by their sources.
        ignored: Columns that do nothing.
        batch_pictures: How many pictures share a batch at most.
        model: The checkpoint, as it was named.
        is_openai: Whether rows are lines of a batch file of OpenAI's.
    """

    prepared: CheckedModel
    defaults: Mapping[str, Any]
    ignored: Collection[str]
    batch_pictures: int
    model: str
    is_openai: bool

    def window(self, number: int, rows: Sequence[RawRow], before: Sequence[Record] = ()) -> Window:
        """Check the rows of a window and lay out its batches.

        Args:
            number: Of the window.
            rows: All of its rows.
            before: What it came to, if what failed is tried again: the rest is kept.
        """
        kept = {(each["row"], each["picture"]): each for each in before if each["error"] is None}
        wanted = {each["row"] for each in before if each["error"] is not None}
        together: dict[str, list[Item]] = {}
        bad: list[Record] = []
        for row in rows:
            if before and row.number not in wanted:
                continue
            try:
                for key, item in self.pictures(row):
                    if (item.row, item.picture) not in kept:
                        together.setdefault(key, []).append(item)
            except ValueError as error:
                said = error.said() if isinstance(error, RequestError) else str(error)
                free = next(picture for picture in count() if (row.number, picture) not in kept)
                bad.append(record(row.id, row.number, free, error=said))
        most = self.batch_pictures
        batches = [items[start : start + most] for items in together.values() for start in range(0, len(items), most)]
        units = [Unit.of(number, items) for items in sorted(batches, key=lambda items: items[0].row)]
        return Window(number=number, units=tuple(units), bad=tuple(bad), kept=tuple(kept.values()))

    def pictures(self, row: RawRow) -> list[tuple[str, Item]]:
        """The pictures of a row, each with what decides whose batch it may share.

        Raises:
            ValueError: If it cannot be drawn; says why.
        """
        values, sources = self._asked(row)
        copies = ROWS["num_images_per_prompt"].kind.check(
            "num_images_per_prompt", values.pop("num_images_per_prompt", 1), self.prepared.sources.limits
        )
        contents = contents_of(sources)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RequestWarning)
            request = self._request(row, values, pixels_of(contents))
        notes = "; ".join(str(each.message) for each in caught if isinstance(each.message, RequestWarning))
        key = self._checked(request)
        common: dict[str, Any] = {
            "row": row.number,
            "id": row.id,
            "sources": sources,
            "digests": digests_of(contents),
            "note": notes,
        }
        found = []
        for picture in range(copies):
            wire = to_text(request.picture(picture))
            found.append((key, Item(picture=picture, request=wire, **common)))
        return found

    def _asked(self, row: RawRow) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of a row's request, and the sources of its pictures."""
        if row.problem is not None:
            raise ValueError(row.problem)
        defaults = self.prepared.sources.defaults
        if self.is_openai:
            from max_zimage.batch.openai_lines import values_of_line

            own, sources = values_of_line(row.fields, self.model, defaults.num_inference_steps)
        else:
            fields = {name: value for name, value in row.fields.items() if name not in self.ignored}
            if problems := [found for name in fields if (found := problem_of(name))]:
                raise ValueError(f"{'; '.join(problems)}; rename it, or leave it out")
            own = values_of(fields)
            sources = {name: own.pop(name) for name in ("image", "mask_image") if name in own}
        for name in ("image", "mask_image"):
            if name in self.defaults and not sources.keys() & ({name} | ({"mask"} if name == "mask_image" else set())):
                sources[name] = self.defaults[name]
        sources = {name: absolute(value) if isinstance(value, str) else value for name, value in sources.items()}
        plain = {name: value for name, value in self.defaults.items() if name not in sources}
        return with_configured({**own, **dict.fromkeys(sources, _TO_BE_READ)}, plain), sources

    def _request(self, row: RawRow, values: dict[str, Any], pictures: Mapping[str, Any]) -> GenerationRequest:
        sources = self.prepared.sources
        arguments = {name: value for name, value in values.items() if value is not _TO_BE_READ} | {**pictures}
        if arguments.get("seed") is None and "seed" not in sources.defaults.configured:
            arguments["seed"] = seed_of(row.id)
        if "image" in arguments:
            arguments.setdefault("resize", False)  # a column may say it, which what is wrong with a size is to name
        return GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **arguments, output_type="np")

    def _checked(self, request: GenerationRequest) -> str:
        """What else is to be found out before anything is drawn; what decides whose batch it may share."""
        if request.num_prompts != 1:
            raise RequestError.of("prompt", "{field} must be one text, got {given}", given=request.num_prompts)
        spec = self.prepared.sources.specs.schedule
        tokens_of_request(request, self.prepared.tokenizer, self.prepared.sources.limits)
        legs_of(request, spec)
        self.prepared.facts_of(request)
        alike = replace(request, enhance=False, enhance_seed=None)  # of words, written before any picture is drawn
        return sharing_key(alike, request.schedule(spec))


def seed_of(id: str) -> int:
    """The seed of a row that names none: of its id alone.

    >>> seed_of("a"), seed_of("b")
    (2953117866, 2844998432)
    """
    digest = hashlib.sha256(f"max_zimage seed {id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[: _SEED_BITS // 8])
