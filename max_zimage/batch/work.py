"""What a job's file comes to: windows of rows, and in each the batches that are drawn and the rows that are not.

All of it follows from the file, the files that it names and the job's settings, whatever was drawn before: so whoever
goes on with a job draws the same batches, and a picture does not depend on where a job was interrupted. A file that can
be read in one run and not in another makes other batches of its window. So a batch is named by what is in it: what is
recorded under its name is its own, and what is recorded of a batch that there is no longer is left aside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class JobError(RuntimeError):
    """A job that cannot go on; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture to be drawn.

    Attributes:
        row: Place of its row in the file, from 0.
        picture: Which of the row's pictures.
        id: Of the row.
        request: Its request in the wire form, see `max_zimage.request.wire`.
        sources: What the request's pictures are read from, see `max_zimage.batch.pictures_in`.
        digests: Of those files as they were when the request was checked.
        note: What its author had better know; "" for nothing.
    """

    row: int
    picture: int
    id: str
    request: str
    sources: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Pictures that share a batch, and are recorded together or not at all.

    Attributes:
        window: Which window of the file.
        name: Within it; of its pictures, see `of`.
        items: The pictures.
        tries: How often a process has ended over it.
    """

    window: int
    name: str
    items: tuple[Item, ...]
    tries: int = 0

    @classmethod
    def of(cls, window: int, items: Sequence[Item]) -> Unit:
        """The unit of these pictures, under the name that no other pictures have."""
        places = " ".join(f"{item.row}:{item.picture}" for item in items)
        return cls(window=window, name=hashlib.sha256(places.encode()).hexdigest()[:16], items=tuple(items))

    @property
    def key(self) -> tuple[int, str]:
        """By which a job knows it."""
        return self.window, self.name

    def alone(self) -> list[Unit]:
        """Each of its pictures by itself."""
        return [
            Unit(window=self.window, name=f"{self.name}-{place:03d}", items=(item,))
            for place, item in enumerate(self.items)
        ]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window of the file.

    Attributes:
        number: Which.
        units: What is drawn.
        bad: Records of rows that are not; see `max_zimage.batch.records`.
        kept: Records of pictures that were drawn before what failed in it is tried again.
    """

    number: int
    units: tuple[Unit, ...]
    bad: tuple[Mapping[str, Any], ...]
    kept: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """That a unit is recorded.

    Attributes:
        window: Of the unit.
        name: Of the unit.
        pictures: How many were drawn.
        failed: How many were not.
    """

    window: int
    name: str
    pictures: int
    failed: int

    @property
    def key(self) -> tuple[int, str]:
        """That of the unit."""
        return self.window, self.name
