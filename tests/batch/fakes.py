"""A job in one process and without files of a model: what draws is given, or draws noise from its seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from max_zimage import ZImagePipeline
from max_zimage.batch.drawing import Drawer
from max_zimage.batch.jobs import Job
from max_zimage.batch.output import Output
from max_zimage.batch.planning import Planner
from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.source import Source
from max_zimage.batch.work import Report, Unit
from max_zimage.pipeline.carried import Carried
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.request.request import GenerationRequest
from tests.batch.light import TOO_MUCH

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 0.0}


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@cache
def _prepared() -> CheckedModel:
    return ZImagePipeline.prepare(device="cpu")


def job_of(file: Path, folder: Path | str, run: str = "run", **more: Any) -> Job:
    """A job over the embedded model's checkpoint, of which nothing is loaded."""
    defaults = more.pop("defaults", SMALL)
    source = Source(str(file), more.pop("id_column", None))
    survey = source.survey()
    planner = Planner(
        prepared=_prepared(),
        defaults=defaults,
        ignored=more.pop("ignored", ()),
        batch_pictures=more.pop("batch_pictures", 4),
        model="tiny-zimage",
        is_openai=survey.is_openai,
    )
    rows, form = more.pop("window_rows", 8), more.pop("form", "files")
    book = RecordBook(Output(str(folder)), run)
    return Job(source=source, survey=survey, planner=planner, book=book, form=form, window_rows=rows, **more)


class Here:
    """Draws in this process, with a pipeline that is loaded."""

    def __init__(self, drawer: Drawer, stop_after: int | None = None) -> None:
        self.drawer, self.left = drawer, stop_after
        self.units: list[Unit] = []

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, units: Iterator[Unit], book: RecordBook) -> Iterator[Report]:
        for unit in units:
            if self.left is not None and len(self.units) == self.left:
                raise KeyboardInterrupt
            self.units.append(unit)
            yield self.drawer(unit)


class NoiseDrawer(Drawer):
    """Draws noise, and fails over a prompt `TOO_MUCH`."""

    def __init__(self, book: RecordBook) -> None:
        drawn_by = {"model": "noise", "weight_paths": (), "dtype": "float32", "device": "cpu"}

        def carried(request: GenerationRequest, *, is_whole: bool) -> Carried:
            return Carried(request, drawn_by, is_whole)

        pipeline: Any = SimpleNamespace(carried=carried)
        super().__init__(pipeline, book, metadata=True)

    def _pixels(self, requests: Sequence[GenerationRequest]) -> list[Any]:
        prompts = [each.prompts[0] for each in requests]
        if TOO_MUCH in prompts:
            raise MemoryError("the device is gone")
        return [
            np.random.default_rng(each.seed).integers(0, 256, (each.height, each.width, 3), np.uint8)
            for each in requests
        ]


def results(folder: Path) -> list[dict[str, Any]]:
    """All records of a job that is done, in the order of the file."""
    files = sorted((folder / "results").glob("*.parquet"))
    return [each for file in files for each in pq.read_table(file).to_pylist()]


def digests(folder: Path) -> dict[str, str | None]:
    """Id and picture -> digest; fails where one is there twice."""
    found = [(f"{each['id']} {each['picture']}", each["digest"]) for each in results(folder)]
    assert len(dict(found)) == len(found)
    return dict(found)
