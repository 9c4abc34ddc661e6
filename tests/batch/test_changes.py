"""What changes between the runs of a job: files that can be read or not, and failures that are tried again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage.batch import drawing
from max_zimage.batch.output import Output
from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.work import Report, Unit, Window
from max_zimage.enhancer.settings import EnhancerError
from max_zimage.errors import RequestWarning
from max_zimage.request.request import GenerationRequest
from tests.batch.fakes import Here, NoiseDrawer, digests, job_of, results, write_lines

FORMS = ("files", "parquet", "webdataset")


def here(folder: Path, run: str = "run", **more: Any) -> Here:
    return Here(NoiseDrawer(RecordBook(Output(str(folder)), run)), **more)


def save_picture(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten rows, of which the third begins with a picture, and one cannot be drawn."""
    rows: list[dict[str, Any]] = [{"id": f"n{number}", "prompt": f"picture {number}"} for number in range(10)]
    rows[2] |= {"image": str(tmp_path / "in.png"), "strength": 0.5}
    rows[7]["height"] = 63
    return write_lines(tmp_path / "rows.jsonl", rows)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def expected_files(folder: Path, windows: int = 2) -> set[str]:
    tables = {f"results/{number:05d}.parquet" for number in range(windows)}
    return (
        tables | {"job.json", "job.lock", "manifest.json"} | {each["path"] for each in results(folder) if each["path"]}
    )


@pytest.mark.parametrize("is_there_first", [True, False])
def test_a_picture_that_comes_or_goes_between_runs_costs_its_row_alone(
    is_there_first: bool, file: Path, tmp_path: Path
) -> None:
    """Other rows of its batch come together then: what is recorded is of other batches."""
    picture, folder = tmp_path / "in.png", tmp_path / "out"
    if is_there_first:
        save_picture(picture)
    with pytest.raises(KeyboardInterrupt):
        job_of(file, folder).run(here(folder, stop_after=1))
    picture.unlink() if is_there_first else save_picture(picture)
    counts = job_of(file, folder).run(here(folder, "second"))
    assert (counts.rows, counts.pictures, counts.failed) == ((10, 8, 2) if is_there_first else (10, 9, 1))
    failed = [each["id"] for each in results(folder) if each["error"]]
    assert failed == (["n2", "n7"] if is_there_first else ["n7"])
    assert len(digests(folder)) == 10
    assert files_of(folder) == expected_files(folder)


@pytest.mark.parametrize("form", FORMS)
def test_what_failed_is_tried_again_and_nothing_else(form: str, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    job_of(file, folder, form=form).run(here(folder))
    before = digests(folder)
    assert [id for id, digest in before.items() if digest is None] == ["n2 0", "n7 0"]
    executor = here(folder, "second")
    job_of(file, folder, form=form).run(executor)
    assert executor.units == []
    save_picture(tmp_path / "in.png")
    executor = here(folder, "third")
    counts = job_of(file, folder, form=form, retry_failed=True).run(executor)
    assert [[item.id for item in unit.items] for unit in executor.units] == [["n2"]]
    assert (counts.rows, counts.pictures, counts.failed, counts.drawn) == (10, 9, 1, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["pictures"], manifest["failed"]) == (9, 1)
    after = digests(folder)
    assert after.pop("n2 0") is not None
    assert after == {id: digest for id, digest in before.items() if id != "n2 0"}
    assert files_of(folder) == expected_files(folder)
    whole = tmp_path / "whole"
    job_of(file, whole, form=form).run(here(whole))
    assert digests(whole) == digests(folder)
    if form == "parquet":
        assert [each["image"] for each in results(whole)] == [each["image"] for each in results(folder)]
    if form == "webdataset":
        shards = [name for name in files_of(folder) if name.endswith(".tar")]
        assert shards
        for name in shards:
            assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_another_try_that_is_interrupted_goes_on(form: str, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    job_of(file, folder, form=form).run(here(folder))
    before = digests(folder)
    save_picture(tmp_path / "in.png")
    with pytest.raises(KeyboardInterrupt):
        job_of(file, folder, form=form, retry_failed=True).run(here(folder, "second", stop_after=0))
    assert not (folder / "manifest.json").exists()
    counts = job_of(file, folder, form=form).run(here(folder, "third"))
    assert (counts.pictures, counts.failed, counts.drawn) == (9, 1, 1)
    after = digests(folder)
    assert after | {"n2 0": None} == before
    assert files_of(folder) == expected_files(folder)


def test_some_pictures_of_a_row_that_failed_are_tried_again(tmp_path: Path) -> None:
    """The row's others are kept; and where the row cannot be drawn at all by then, its record says so once."""

    class OneFails(NoiseDrawer):
        def _pixels(self, requests: Sequence[GenerationRequest]) -> list[Any]:
            return [f"no picture of {each.seed}" if each.seed == 4 else super(OneFails, self)._pixels([each])[0]
                    for each in requests]  # fmt: skip

    save_picture(tmp_path / "in.png")
    row = {"prompt": "x", "seed": 3, "num_images_per_prompt": 3, "image": str(tmp_path / "in.png"), "strength": 0.5}
    file, folder = write_lines(tmp_path / "a.jsonl", [row]), tmp_path / "out"
    job_of(file, folder).run(Here(OneFails(RecordBook(Output(str(folder)), "run"))))
    assert [each["error"] for each in results(folder)] == [None, "no picture of 4", None]
    before = digests(folder)
    (tmp_path / "in.png").unlink()
    counts = job_of(file, folder, retry_failed=True).run(here(folder, "second"))
    assert (counts.rows, counts.pictures, counts.failed) == (1, 2, 1)
    assert "cannot be read" in results(folder)[1]["error"]
    save_picture(tmp_path / "in.png")
    counts = job_of(file, folder, retry_failed=True).run(here(folder, "third"))
    assert (counts.rows, counts.pictures, counts.failed) == (1, 3, 0)
    after = digests(folder)
    assert [id for id in before if before[id] != after[id]] == ["0 1"]


def test_pictures_of_a_batch_that_was_taken_apart_leave_nothing(tmp_path: Path) -> None:
    """Alone they may come out as other bytes; those of the batch were there when its process ended."""

    class Shaped(NoiseDrawer):
        def _pixels(self, requests: Sequence[GenerationRequest]) -> list[Any]:
            return [each ^ len(requests) for each in super()._pixels(requests)]

    class EndsLate(Here):
        def run(self, units: Iterator[Unit], book: RecordBook) -> Iterator[Report]:
            for unit in units:
                self.drawer(unit)
                book.output.remove(book._path(unit))  # as if the process had ended right before
                for each in unit.alone():
                    yield self.drawer(each)

    file = write_lines(tmp_path / "a.jsonl", [{"prompt": str(number)} for number in range(4)])
    folder = tmp_path / "out"
    counts = job_of(file, folder).run(EndsLate(Shaped(RecordBook(Output(str(folder)), "run"))))
    assert counts.pictures == 4
    assert files_of(folder) == expected_files(folder, 1)


def test_what_an_enhancer_says_stands_beside_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def enhanced(_pipeline: Any, request: GenerationRequest) -> GenerationRequest:
        if request.prompts == ("none",):
            raise EnhancerError("there is no such enhancer")
        warnings.warn(RequestWarning(f"{request.prompts[0]} is drawn as it was given"), stacklevel=2)
        return request

    monkeypatch.setattr(drawing, "enhanced", enhanced)
    rows = [{"prompt": "x"}, {"prompt": "none"}, {"prompt": "y", "negative_prompt": "z"}]
    file, folder = write_lines(tmp_path / "a.jsonl", rows), tmp_path / "out"
    counts = job_of(file, folder).run(here(folder))
    assert (counts.pictures, counts.failed) == (2, 1)
    first, second, third = results(folder)
    assert first["note"] == "x is drawn as it was given"
    assert second["error"] == "there is no such enhancer"
    assert third["note"].startswith("guidance_scale is 0: ")
    assert third["note"].endswith("; y is drawn as it was given")


def test_paths_mean_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes on other machines begin in other folders."""
    save_picture(tmp_path / "in.png")
    file = write_lines(tmp_path / "a.jsonl", [{"prompt": "x", "image": "in.png", "strength": 0.5}])
    monkeypatch.chdir(tmp_path)
    job = job_of(file, "out")
    assert job.output.url == str(tmp_path / "out")
    ((number, rows),) = job.source.windows(job.survey, 8)
    (unit,) = job.planner.window(number, rows).units
    assert unit.items[0].sources == {"image": str(tmp_path / "in.png")}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert NoiseDrawer(RecordBook(Output(job.output.url), "run"))(unit).pictures == 1
    assert Output("memory://a/b").url == "memory://a/b"


def test_a_file_that_has_changed_is_not_drawn_from(tmp_path: Path) -> None:
    save_picture(tmp_path / "in.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "other.png")
    rows = [{"prompt": "x", "image": str(tmp_path / "in.png")}, {"prompt": "y", "image": str(tmp_path / "in.png")}]
    file = write_lines(tmp_path / "a.jsonl", rows)
    job = job_of(file, tmp_path / "out")
    ((number, found),) = job.source.windows(job.survey, 8)
    (unit,) = job.planner.window(number, found).units
    (tmp_path / "other.png").replace(tmp_path / "in.png")
    report = NoiseDrawer(job.book)(unit)
    assert report == Report(window=0, name=unit.name, pictures=0, failed=2)
    said = [each["error"] for each in job.book.records_of(Window(number=number, units=(unit,), bad=()))]
    assert said == ["image is another file than it was when the request was checked; draw this row again"] * 2
