"""Work of a job without a model, for processes that start within a second: nothing here imports MAX."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from max_zimage.batch.output import Output
from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.records import record
from max_zimage.batch.work import Report, Unit

POISON, TOO_MUCH = "poison", "breaks"


class LightDrawer:
    """Records without drawing; its process ends over a prompt `POISON`, and fails over one `TOO_MUCH`."""

    def __init__(self, book: RecordBook) -> None:
        self.book = book

    def __call__(self, unit: Unit) -> Report:
        self.book.begin(unit)
        requests = " ".join(item.request for item in unit.items)
        if POISON in requests:
            os.kill(os.getpid(), signal.SIGKILL)
        if TOO_MUCH in requests:
            raise MemoryError("the device is gone")
        return self.book.write(unit, [record(item.id, item.row, item.picture, path="x") for item in unit.items])


@dataclass(frozen=True, kw_only=True)
class LightDrawing:
    """Loads one, or does not."""

    url: str
    fails: str = ""

    def load(self) -> LightDrawer:
        if self.fails == "ends":
            os._exit(3)
        if self.fails:
            raise ValueError("there is no such model")
        return LightDrawer(RecordBook(Output(self.url), "run"))
