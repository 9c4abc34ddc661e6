"""Pictures drawn with adapters by the command line, and repeated from what they carry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from max_zimage.cli.main import main
from max_zimage.request.metadata import read_parameters
from tests.references.diffusers_runs import Pair
from tests.references.loras import STYLE, write_adapter
from tests.request.conftest import Repeat
from tests.request.test_repeat import pixels

DRAW = ("a red star", "--seed", "3", "--steps", "2", "--height", "64", "--width", "64")


@pytest.fixture(autouse=True)
def _given_back(embedded: Pair) -> Iterator[None]:
    """The pipeline that tests share keeps the weights of its checkpoint."""
    yield
    embedded.ours.set_loras()


@pytest.fixture
def drawn(repeat: Repeat, tmp_path: Path) -> Path:
    """A picture in a folder of its own, with two adapters that lie elsewhere."""
    for folder in ("loras", "pictures"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(("style.safetensors", "other.safetensors")):
        write_adapter(tmp_path / "loras" / name, STYLE, seed=number)
    flags = ("--lora", "loras/style.safetensors:0.5", "--lora", "loras/other.safetensors")
    assert repeat(*DRAW, *flags, "--output", "pictures/a.png") == (0, "")
    return tmp_path / "pictures" / "a.png"


def test_what_it_remembers(drawn: Path, repeat: Repeat, embedded: Pair) -> None:
    kept = [(each["name"], each["scale"]) for each in read_parameters(drawn).loras]
    assert kept == [("style.safetensors", 0.5), ("other.safetensors", 1.0)]
    files = [(drawn.parent.parent / "loras" / name, scale) for name, scale in kept]
    sizes: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}
    expected = embedded.ours("a red star", seed=3, loras=files, output_type="np", **sizes)
    np.testing.assert_array_equal(pixels(drawn), np.asarray(expected)[0])
    plain = embedded.ours("a red star", seed=3, output_type="np", **sizes)
    assert (np.asarray(plain)[0] != pixels(drawn)).mean() > 0.1


def test_files_are_asked_for(drawn: Path, loads_nothing: Repeat) -> None:
    code, error = loads_nothing("--from", "pictures/a.png")
    assert code == 2
    assert "pictures/a.png was drawn with the adapter style.safetensors (sha256:" in error
    assert "name its file with --lora, or put it beside the picture" in error
    code, error = loads_nothing("--from", "pictures/a.png", "--lora", "loras/style.safetensors")
    assert code == 2
    assert "was drawn with the adapter other.safetensors (sha256:" in error
    write_adapter(drawn.parent / "style.safetensors", STYLE, seed=7)
    code, error = loads_nothing("--from", "pictures/a.png")
    assert code == 2
    assert "; pictures/style.safetensors is another one" in error
    code, error = loads_nothing("--from", "pictures/a.png", "--lora", "pictures/style.safetensors")
    assert code == 2
    assert "--lora pictures/style.safetensors is none of the adapters that pictures/a.png was drawn with" in error
    code, error = loads_nothing("--from", "pictures/a.png", "--lora", "gone.safetensors")
    assert code == 2
    assert "--lora gone.safetensors cannot be read: No such file" in error


def test_files_that_are_named(drawn: Path, repeat: Repeat) -> None:
    """In any order and under any name; one that says a scale has that."""
    (drawn.parent.parent / "loras" / "style.safetensors").rename("renamed.safetensors")
    files = ("--lora", "loras/other.safetensors", "--lora", "renamed.safetensors")
    assert repeat("--from", "pictures/a.png", *files, "--output", "b.png") == (0, "")
    np.testing.assert_array_equal(pixels(Path("b.png")), pixels(drawn))
    assert repeat("--from", "pictures/a.png", *files[:3], "renamed.safetensors:0.75", "--output", "c.png") == (0, "")
    kept = [(each["name"], each["scale"]) for each in read_parameters(Path("c.png")).loras]
    assert kept == [("other.safetensors", 1.0), ("renamed.safetensors", 0.75)]
    assert (pixels(Path("c.png")) != pixels(drawn)).mean() > 0.02


def test_files_that_lie_beside(drawn: Path, repeat: Repeat) -> None:
    """The picture, or in this folder."""
    (drawn.parent.parent / "loras" / "style.safetensors").rename(drawn.parent / "style.safetensors")
    (drawn.parent.parent / "loras" / "other.safetensors").rename("other.safetensors")
    assert repeat("--from", "pictures/a.png", "--output", "b.png") == (0, "")
    np.testing.assert_array_equal(pixels(Path("b.png")), pixels(drawn))
    assert read_parameters(Path("b.png")) == read_parameters(drawn)


def test_what_was_applied_is_said(drawn: Path, repeat: Repeat, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *DRAW, "--lora", "loras/style.safetensors:-0.5", "--output", "b.png"]) == 0
    said = capsys.readouterr().err
    assert "max-zimage: adapter style.safetensors at -0.5: all its modules applied, 3 of the transformer\n" in said


def test_what_is_none_is_said_before_anything_is_loaded(drawn: Path, loads_nothing: Repeat) -> None:
    for name, message in (
        ("gone.safetensors", "--lora[0]: gone.safetensors is no file"),
        ("loras/style.safetensors:nan", "--lora[0].scale must be 0, or from"),
        ("pictures/a.png", "a.png"),
    ):
        code, error = loads_nothing(*DRAW, "--lora", name)
        assert code == 2
        assert message in error
