"""Jobs drawn by processes of this machine, which end at any moment, and with them the job."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from PIL import Image

from max_zimage.batch.drawing import Drawer
from max_zimage.batch.local import Local
from max_zimage.batch.output import Output
from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.work import JobError
from max_zimage.cli.batch_settings import settings_of
from tests.batch.fakes import Here, digests, job_of, results, write_lines
from tests.batch.light import POISON, TOO_MUCH, LightDrawing
from tests.paths import INSTALLED
from tests.references.diffusers_runs import Pair

SIZE = ("--steps", "2", "--guidance", "0", "--batch-pictures", "3", "--shard-rows", "8")


def test_a_picture_over_which_processes_end_costs_itself(tmp_path: Path) -> None:
    """And the pictures of its batch are recorded, each by itself; as are those of one that fails."""
    rows = [{"id": str(number), "prompt": f"p{number}"} for number in range(8)]
    rows[1]["prompt"], rows[6]["prompt"] = POISON, TOO_MUCH
    folder = tmp_path / "out"
    counts = job_of(write_lines(tmp_path / "a.jsonl", rows), folder).run(Local(LightDrawing(url=str(folder)), 2))
    assert (counts.pictures, counts.failed) == (6, 2)
    found = {each["id"]: each["error"] for each in results(folder) if each["error"]}
    began = "2 processes ended while they drew it by itself, the last one with "
    assert found == {"1": began + "signal 9 (SIGKILL)", "6": began + "MemoryError: the device is gone"}
    assert [each["id"] for each in results(folder) if each["path"]] == ["0", "2", "3", "4", "5", "7"]


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("says", "ValueError: there is no such model"),
        ("ends", "3 processes ended before the model was loaded, .* code 3"),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_the_job(fails: str, says: str, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"prompt": "x"}])
    drawing = LightDrawing(url=str(tmp_path / "out"), fails=fails)
    with pytest.raises(JobError, match=says):
        job_of(file, tmp_path / "out").run(Local(drawing))


class Command:
    """`max-zimage batch` as a process of its own."""

    def __init__(self, *words: str, cwd: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": INSTALLED}
        self.log = cwd / "log"
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "max_zimage", "batch", *words]
            self.process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=log)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        for worker in workers:  # which end by themselves; a test that fails leaves none all the same
            worker.kill()

    def workers(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def until_recorded(self, folder: Path, count: int, seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while recorded(folder) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)


def recorded(folder: Path) -> int:
    """Batches and windows that are recorded."""
    units = [path for path in folder.glob("work/0*/*.parquet") if path.name != "bad.parquet"]
    return len(units) + 3 * len(list(folder.glob("results/*.parquet")))


def gone(processes: list[psutil.Process], seconds: float = 20) -> Iterator[bool]:
    """Whether each has ended, by itself."""
    end = time.monotonic() + seconds
    for each in processes:
        while each.is_running() and each.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
            time.sleep(0.05)
        yield not each.is_running() or each.status() == psutil.STATUS_ZOMBIE


def test_killed_again_and_again_it_comes_to_the_same(
    embedded: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers and the command itself, at moments that nobody chose; embedded for its graphs, which are compiled."""
    random = Random(26)
    rows = [
        {"id": f"n{number}", "prompt": f"a star {number}", "height": 64, "width": 64 + 16 * (number % 2)}
        for number in range(20)
    ]
    rows[7]["height"] = 1
    write_lines(tmp_path / "a.jsonl", rows)
    plain, folder = tmp_path / "plain", tmp_path / "killed"
    more: Any = {"batch_pictures": 3, "window_rows": 8, "defaults": {"num_inference_steps": 2, "guidance_scale": 0.0}}
    monkeypatch.setattr(embedded.ours, "named", ("tiny-zimage", ()))  # as the command line names it: pictures say so
    drawer = Drawer(embedded.ours, RecordBook(Output(str(plain)), "run"), metadata=True)
    job_of(tmp_path / "a.jsonl", plain, **more).run(Here(drawer))
    job = ("a.jsonl", *SIZE, "--device", "cpu", "--quiet", "--output", "killed")
    with Command(*job, cwd=tmp_path) as command:
        command.until_recorded(folder, 1)
        time.sleep(random.random() * 0.2)
        (worker,) = [each for each in command.workers() if "spawn_main" in " ".join(each.cmdline())]
        worker.kill()
        command.until_recorded(folder, recorded(folder) + 1)
        time.sleep(random.random() * 0.2)
        workers = command.workers()
        command.process.send_signal(signal.SIGKILL)
        command.process.wait()
        assert all(gone(workers)), "a process outlived the one that started it"
    with Command(*job, cwd=tmp_path) as command:
        assert command.process.wait(timeout=900) == 0, command.log.read_text()
    assert digests(folder) == digests(plain)
    assert len(digests(folder)) == 20
    assert {path.name for path in folder.rglob("*.png")} == {
        Path(each["path"]).name for each in results(folder) if each["path"]
    }


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from max_zimage.cli.main import main

    file = write_lines(tmp_path / "a.jsonl", [{"prompt": "x", "prompts": "y"}])

    def said(*words: str, device: str | None = "cpu") -> str:
        output: Any = ("--output", str(tmp_path / "out"), *(["--device", device] if device else []))
        assert main(["batch", *words, *output]) == 2
        return capsys.readouterr().err

    assert "prompts is no field of a request, the nearest is prompt" in said(str(file))
    assert "cannot be read as jsonl: No such file" in said(str(tmp_path / "none.jsonl"))
    for flags in (("--devices", "gpu:0,1"), ("--split", "tokens")):
        told = f"{' '.join(flags)} and --ray exclude each other: of a cluster each GPU draws by itself; leave one out"
        assert told in said(str(file), "--ray", "auto", *flags)
    config = tmp_path / "config.toml"
    config.write_text('[pipeline]\ndevices = ["gpu:0", "gpu:1"]\n')
    with_file = (str(tmp_path / "none.jsonl"), "--ray", "auto", "--config", str(config))
    assert "--devices gpu:0,gpu:1 and --ray exclude each other" in said(*with_file, device=None)
    assert "cannot be read as jsonl: No such file" in said(*with_file, device="auto")
    assert "--ignore colour: " in said(str(file), "--ignore", "prompts", "--ignore", "colour")
    assert "has no column key" in said(str(file), "--id-column", "key")
    body = {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "x"}}
    lines = str(write_lines(tmp_path / "b.jsonl", [body]))
    assert "--ignore: " in said(lines, "--ignore", "split")
    assert "--id-column: " in said(lines, "--id-column", "custom_id")
    assert "is a batch file of OpenAI's, named by custom_id; leave it out" in said(lines, "--id-column", "custom_id")
    assert not (tmp_path / "out").exists()


def test_what_pictures_depend_on_is_pinned(tmp_path: Path) -> None:
    """Also what lies in files that flags name."""
    templates = tmp_path / "templates"
    templates.mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png")
    flags = dict.fromkeys(("id_column", "dtype", "weight_path", "quantize", "attention_backend", "no_metadata"))
    arguments = argparse.Namespace(**flags, ignore=[], device="cpu", templates_dir=str(templates))
    arguments.configuration = argparse.Namespace(fields={}, start={})

    def pinned() -> dict[str, Any]:
        return settings_of(arguments, "tiny-zimage", {"image": str(tmp_path / "in.png"), "strength": 0.5})

    first = pinned()
    assert pinned() == first
    assert first["device"] == "cpu"
    Image.new("RGB", (64, 64), "red").save(tmp_path / "in.png")
    second = pinned()
    assert [name for name in first if first[name] != second[name]] == ["default_pictures"]
    (templates / "own.md").write_text("You draw.")
    third = pinned()
    assert [name for name in first if second[name] != third[name]] == ["templates"]
    arguments.device = "cuda"
    fourth = pinned()
    assert [name for name in first if third[name] != fourth[name]] == ["device"]
    arguments.configuration.start = {"enhancer": {"temperature": 0.2}}
    assert [name for name in first if fourth[name] != pinned()[name]] == ["enhancer"]
    other = pinned()
    arguments.configuration.start = {"enhancer": {"temperature": 0.2, "key_file": "elsewhere"}}
    assert pinned() == other
