"""Jobs in one process: every row once, in every form, however often they are interrupted."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from max_zimage.batch.drawing import Drawer
from max_zimage.batch.output import Output
from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.work import JobError
from max_zimage.progress import shown_by
from max_zimage.request.metadata import GenerationParameters, read_parameters
from tests.batch.fakes import Here, NoiseDrawer, digests, job_of, results, write_lines
from tests.batch.light import TOO_MUCH
from tests.references.diffusers_runs import Pair

ROWS: list[dict[str, Any]] = [
    {"id": f"n{number}", "prompt": f"picture {number}", "width": 64 + 16 * (number % 3)} for number in range(21)
]
ROWS[5]["height"] = 63
ROWS[9]["num_images_per_prompt"] = 3


def here(folder: Path | str, run: str = "run", **more: Any) -> Here:
    return Here(NoiseDrawer(RecordBook(Output(str(folder)), run)), **more)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def plain(file: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    job_of(file, folder).run(here(folder))
    return folder


def test_every_row_has_its_pictures(plain: Path) -> None:
    found = results(plain)
    expected = [(f"n{number}", picture) for number in range(21) for picture in range(3 if number == 9 else 1)]
    assert [(each["id"], each["picture"]) for each in found] == expected
    (bad,) = [each for each in found if each["error"]]
    assert (bad["id"], bad["path"], bad["seed"]) == ("n5", None, None)
    for each in found:
        if each["path"]:
            parameters = read_parameters(plain / each["path"])
            assert parameters == GenerationParameters.from_json(each["parameters"])
            assert (parameters.seed, parameters.prompt) == (each["seed"], f"picture {each['id'][1:]}")
            expected_pixels = np.random.default_rng(each["seed"]).integers(0, 256, (64, parameters.width, 3), np.uint8)
            np.testing.assert_array_equal(np.asarray(Image.open(plain / each["path"])), expected_pixels)
    assert {path.relative_to(plain).as_posix() for path in plain.rglob("*.png")} == {
        each["path"] for each in found if each["path"]
    }
    assert {path.name for path in plain.iterdir()} == {"job.json", "job.lock", "manifest.json", "results", "pictures"}
    manifest = json.loads((plain / "manifest.json").read_text())
    assert (manifest["rows"], manifest["pictures"], manifest["failed"]) == (21, 22, 1)
    assert manifest["results"] == [f"results/{number:05d}.parquet" for number in range(3)]


def test_a_job_that_is_done_draws_nothing(plain: Path, file: Path) -> None:
    executor = here(plain)
    counts = job_of(file, plain).run(executor)
    assert executor.units == []
    assert (counts.rows, counts.pictures, counts.failed, counts.drawn) == (21, 22, 1, 0)


@pytest.mark.parametrize("form", ["files", "parquet", "webdataset"])
def test_interrupted_after_every_batch_it_comes_to_the_same(form: str, file: Path, plain: Path, tmp_path: Path) -> None:
    folder, drawn = tmp_path / "out", 0
    for run in range(20):
        executor = here(folder, str(run), stop_after=1)
        try:
            job_of(file, folder, str(run), form=form).run(executor)
        except KeyboardInterrupt:
            assert len(executor.units) == 1
            assert not (folder / "manifest.json").exists()
            drawn += 1
        else:
            break
    assert drawn == 9
    assert digests(folder) == digests(plain)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    tables = {f"results/{number:05d}.parquet" for number in range(3)} | {"job.json", "job.lock", "manifest.json"}
    assert names == tables | {each["path"] for each in results(folder) if each["path"]}


@pytest.mark.parametrize("form", ["files", "parquet", "webdataset"])
def test_killed_at_any_moment_it_comes_to_the_same(form: str, file: Path, plain: Path, tmp_path: Path) -> None:
    """Amid writing, recording and packing, which take longest here. A fork may do all but draw with MAX."""
    folder, random = tmp_path / "out", Random(form)
    job_of(file, folder, form=form).claim()  # what a fork would load is loaded
    ends: list[int] = []
    for run in range(60):
        child = os.fork()
        if child == 0:
            try:
                job_of(file, folder, str(run), form=form).run(here(folder, str(run)))
            finally:
                os._exit(0 if (folder / "manifest.json").exists() else 1)
        if len(ends) < 12:
            time.sleep(random.random() * 0.008 * (1 + run))  # later and later, on a processor of its own or not
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        ends.append(status)
        if status == 0:
            break
    assert ends[-1] == 0
    assert ends.count(signal.SIGKILL) > 5
    assert digests(folder) == digests(plain)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    tables = {f"results/{number:05d}.parquet" for number in range(3)} | {"job.json", "job.lock", "manifest.json"}
    assert names == tables | {each["path"] for each in results(folder) if each["path"]}


def test_pictures_in_tables_are_those_of_files(file: Path, plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    job_of(file, folder, form="parquet").run(here(folder))
    for one, other in zip(results(folder), results(plain), strict=True):
        content = (plain / other["path"]).read_bytes() if other["path"] else None
        assert (one["image"] or {}).get("bytes") == content
        assert (one["path"] is None) == (other["path"] is None)
    assert not (folder / "pictures").exists()
    assert not (folder / "work").exists()


def test_shards_hold_pictures_and_records(file: Path, plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    job_of(file, folder, form="webdataset").run(here(folder))
    for one, other in zip(results(folder), results(plain), strict=True):
        if other["path"] is None:
            continue
        with tarfile.open(folder / one["path"]) as tar:
            picture, beside = (tar.extractfile(name) for name in (one["member"], one["member"][:-4] + ".json"))
            assert picture is not None
            assert beside is not None
            assert picture.read() == (plain / other["path"]).read_bytes()
            facts = json.load(beside)
        assert (facts["id"], facts["seed"], facts["digest"]) == (other["id"], other["seed"], other["digest"])
        assert facts["parameters"] == json.loads(other["parameters"])


def test_another_job_is_refused_in_the_same_place(plain: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds another job: batch_pictures was 4, is 2"):
        job_of(file, plain, batch_pictures=2).run(here(plain))
    other = write_lines(tmp_path / "other.jsonl", ROWS[:3])
    with pytest.raises(ValueError, match="holds another job: file was"):
        job_of(other, plain).run(here(plain))
    with pytest.raises(ValueError, match=r"format was files, is parquet; model was None, is x"):
        job_of(file, plain, form="parquet", settings={"model": "x"}).run(here(plain))
    (plain / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json is damaged"):
        job_of(file, plain).run(here(plain))


def test_two_at_once_are_refused(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with Output(str(folder)).alone(), pytest.raises(ValueError, match="another process runs a job here"):
        job_of(file, folder).run(here(folder))


def test_too_many_errors_end_the_job_and_more_let_it_go_on(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"prompt": "x", "height": 63 + number % 2} for number in range(8)])
    folder = tmp_path / "out"
    with pytest.raises(
        JobError, match=r"4 pictures failed, --max-errors 3 allows no more: 0: height must be .*; 2: height"
    ):
        job_of(file, folder, max_errors=3).run(here(folder))
    said = pq.read_table(folder / "work" / "00000" / "bad.parquet").to_pylist()
    assert [each["id"] for each in said if each["error"].startswith("height must be ")] == ["0", "2", "4", "6"]
    counts = job_of(file, folder, max_errors=4).run(here(folder))
    assert (counts.pictures, counts.failed) == (4, 4)


def test_an_address_that_is_no_folder(file: Path, plain: Path) -> None:
    url = "memory://job-of-a-test"
    output = Output(url)
    job_of(file, url, form="parquet").run(here(url))
    assert output.names("") == ["job.json", "manifest.json", "results"]
    content = output.get("results/00000.parquet")
    assert content is not None
    found = pq.read_table(io.BytesIO(content)).to_pylist()
    assert [each["digest"] for each in found] == [each["digest"] for each in results(plain)[:8]]
    output.remove("")


def test_where_nothing_can_be_written_it_is_said(file: Path) -> None:
    with pytest.raises(ValueError, match=r"/proc/none cannot be written to: "):
        job_of(file, "/proc/none").run(here("/proc/none"))
    with pytest.raises(ValueError, match=r"nosuch://x cannot be opened|Protocol not known"):
        Output("nosuch://x")


def test_a_batch_that_is_recorded_twice_counts_once(file: Path, plain: Path, tmp_path: Path) -> None:
    """As where a node is lost that held the answer, or a batch was taken apart and comes back."""
    folder = tmp_path / "out"

    class Twice(Here):
        def run(self, units: Any, book: RecordBook) -> Any:
            for report in super().run(units, book):
                unit = self.units[-1]
                for each in unit.alone():
                    yield self.drawer(each)
                yield report
                yield report

    executor = Twice(NoiseDrawer(RecordBook(Output(str(folder)), "run")))
    counts = job_of(file, folder).run(executor)
    assert (counts.pictures, counts.failed, counts.rows) == (22, 1, 21)
    assert digests(folder) == digests(plain)


def test_progress_has_a_rate_an_estimate_and_failures(file: Path, tmp_path: Path) -> None:
    class Shown:
        labels: list[str]

        def __init__(self) -> None:
            self.labels = []

        def begin(self, stage: str, total: int) -> None:
            assert (stage, total) == ("Drawing", 21)

        def advance(self, label: str) -> None:
            self.labels.append(label)

        def end(self) -> None:
            pass

        def note(self, text: str) -> None:
            pass

    shown = Shown()
    with shown_by(shown):
        job_of(file, tmp_path / "out").run(here(tmp_path / "out"))
    assert len(shown.labels) == 21
    assert shown.labels[0] == "1 failed"
    assert shown.labels[-1].endswith(" pictures/s, 0 s left, 1 failed")


def test_what_breaks_a_process_is_recorded_nowhere(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"prompt": TOO_MUCH}])
    with pytest.raises(MemoryError):
        job_of(file, tmp_path / "out").run(here(tmp_path / "out"))
    assert list((tmp_path / "out" / "work" / "00000").glob("*.parquet")) == []


def test_pictures_are_those_of_the_pipeline(embedded: Pair, tmp_path: Path) -> None:
    """Alone to the bit; in a batch but for the rounding of other shapes. An image to begin with is read again."""
    start = np.asarray(Image.effect_noise((64, 64), 40).convert("RGB"))
    Image.fromarray(start).save(tmp_path / "in.png")
    rows: list[dict[str, Any]] = [
        {"prompt": "a red star", "seed": 3},
        {"prompt": "a blue ring", "seed": 4, "width": 96},
        {"prompt": "a green circle", "seed": 5, "image": str(tmp_path / "in.png"), "strength": 0.5},
    ]
    file, folder = write_lines(tmp_path / "a.jsonl", rows), tmp_path / "out"
    book = RecordBook(Output(str(folder)), "run")
    drawer = Drawer(embedded.ours, book, metadata=True)
    job_of(file, folder).run(Here(drawer))
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 0.0}
    for row, each in zip(rows, results(folder), strict=True):
        asked = size | row | ({"image": start} if "image" in row else {})
        expected = embedded.ours(**asked, output_type="np")[0]
        np.testing.assert_array_equal(np.asarray(Image.open(folder / each["path"])), expected)
        assert each["seconds"] > 0
    together = write_lines(tmp_path / "b.jsonl", [{**row, "width": 64} for row in rows[:2]])
    job_of(together, tmp_path / "both").run(
        Here(Drawer(embedded.ours, RecordBook(Output(str(tmp_path / "both")), "run"), metadata=False))
    )
    for row, each in zip(rows, results(tmp_path / "both"), strict=False):
        expected = embedded.ours(**size | row | {"width": 64}, output_type="np")[0]
        drawn = np.asarray(Image.open(tmp_path / "both" / each["path"]))
        assert np.mean(np.abs(drawn.astype(int) - expected) <= 1) > 0.999
