"""The embedded model's trainer and its scores as one command, with and without MAX."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

from benchmarks.training import __main__ as command
from benchmarks.training.card import _machine
from benchmarks.training.evaluation import SETTINGS
from max_zimage.embedded import PATH as EMBEDDED
from tests.training.without_max import run_without_max


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "x", "--share", "0"], "--share must be above 0 and at most 1, got 0"),
        (["train", "x", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["evaluate", "x", "--count", "0"], "--count must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_who_draws_what_is_scored() -> None:
    assert command._parse(["train", "x"]).competitors == ["diffusers"]
    assert command._parse(["evaluate", "x"]).competitors == ["diffusers", "engine"]


def test_the_shipped_model_is_the_one_that_people_get() -> None:
    assert command._SHIPPED == EMBEDDED


def test_a_card_names_what_computed_its_numbers() -> None:
    line = {"cpu": "A CPU", "diffusers": "0.42", "max": "26.7", "date": "today"}
    theirs, ours = {**line, "variant": "diffusers"}, {**line, "variant": "engine"}
    assert _machine([theirs]) == "A CPU, diffusers 0.42, today"
    assert _machine([theirs, ours]) == _machine([ours]) == "A CPU, diffusers 0.42, MAX 26.7, today"


def test_bad_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["evaluate", str(tmp_path)]) == 2
    assert "has no model_index.json" in capsys.readouterr().err
    (tmp_path / "settings.json").write_text('{"share": 0.5, "scenes": 1}')
    assert command.main(["train", str(tmp_path)]) == 2
    assert "name another folder" in capsys.readouterr().err


def test_training_and_scoring_need_no_max(tmp_path: Path) -> None:
    def run(*competitors: str) -> subprocess.CompletedProcess[str]:
        arguments = ["evaluate", str(EMBEDDED), "--count", "1", "--results", str(tmp_path / "scores.csv")]
        return run_without_max("benchmarks.training", *arguments, "--competitors", *competitors)

    refused = run("diffusers", "engine")
    assert refused.returncode == 2
    assert "the engine needs MAX, which is not installed; ask for --competitors diffusers" in refused.stderr
    scored = run("diffusers")
    assert scored.returncode == 0, scored.stderr
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows[1:]] == [setting.name for setting in SETTINGS]
    assert {row["variant"] for row in rows} == {"diffusers"}


@pytest.mark.slow
def test_everything_from_nothing(tmp_path: Path) -> None:
    """A thousandth of the training: a checkpoint with a card, whose pictures are read, rightly or not."""
    arguments = ["train", str(tmp_path), "--share", "0.001", "--count", "4"]
    assert command.main(arguments) == 0
    made = tmp_path / "tiny-zimage"
    card = (made / "README.md").read_text()
    assert all(setting.name in card for setting in SETTINGS)
    assert len(list((made / "samples").glob("*.png"))) == len(SETTINGS)
    assert "MAX" not in card
    assert "600 pictures" in card
    assert "7 steps of 40 pictures" in card
    before = (made / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert command.main(arguments) == 0
    assert (made / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == before
