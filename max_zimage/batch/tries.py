"""What becomes of a batch over which a process has ended: nothing is tried for ever."""

from __future__ import annotations

from dataclasses import replace

from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.work import Report, Unit

TRIES, TRIES_ALONE = 3, 2
"""How often a batch is tried, and then each of its pictures by itself: processes end for reasons of others, too."""


def again(unit: Unit, why: str, book: RecordBook) -> tuple[list[Unit], Report | None]:
    """What is to be done with a unit.

    Args:
        unit: With the ends of processes over it counted, this one included.
        why: How the last one ended, in words.
        book: Where it is recorded that a picture cannot be drawn.

    Returns:
        What is tried again, and a report if that is nothing.
    """
    if len(unit.items) > 1:
        return ([unit] if unit.tries < TRIES else unit.alone()), None
    if unit.tries < TRIES_ALONE:
        return [unit], None
    return [], book.fail(unit, f"{unit.tries} processes ended while they drew it by itself, the last one with {why}")


def counted(unit: Unit, tries: int | None = None) -> Unit:
    """The unit with so many ends of processes over it; with one more if not given."""
    return replace(unit, tries=unit.tries + 1 if tries is None else tries)
