"""A run in parts by the command line, whose latents lie in a file between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.request.conftest import Repeat

FLAGS = ("a red star", "--height", "64", "--width", "96", "--steps", "4")
REST = ("--steps", "4", "--denoising-start", "0.5", "--latents-in", "half.npy")


def test_a_run_in_two_parts_is_the_whole_one(repeat: Repeat, tmp_path: Path) -> None:
    assert repeat(*FLAGS, "--seed", "5", "--output", "whole.png") == (0, "")
    assert repeat(*FLAGS, "--seed", "5", "--denoising-end", "0.5", "--latents-out", "half.npy") == (0, "")
    assert repeat("--from", "whole.png", *REST, "--output", "rest.png") == (0, "")
    with Image.open(tmp_path / "rest.png") as rest, Image.open(tmp_path / "whole.png") as whole:
        np.testing.assert_array_equal(np.asarray(rest), np.asarray(whole))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*FLAGS, *REST, "--count", "2"), "leave --count out"),
        ((*FLAGS, *REST, "--seed", "5"), "--seed and --latents-in exclude each other"),
        ((*FLAGS, "--latents-in", "text.npy"), "text.npy holds no latents; a file of --latents-out does"),
        ((*FLAGS, "--latents-in", "none.npy"), "none.npy cannot be read"),
        ((*FLAGS, "--latents-in", "wide.npy"), "wide.npy must hold one array of float32, got float64"),
        ((*FLAGS, "--latents-in", "small.npy"), "got shape [1, 16, 8, 8]"),
        ((*FLAGS, "--latents-out", "half.txt"), "a file whose name ends in .npy"),
        ((*FLAGS, "--latents-out", "none/half.npy"), "folder none does not exist"),
        ((*FLAGS, "--denoising-start", "0.5"), "--denoising-start goes on from the --latents-in"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], says: str, loads_nothing: Repeat, tmp_path: Path) -> None:
    np.save(tmp_path / "half.npy", np.zeros((1, 16, 8, 12), np.float32))
    np.save(tmp_path / "small.npy", np.zeros((1, 16, 8, 8), np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((1, 16, 8, 12)))
    (tmp_path / "text.npy").write_text("a text")
    code, error = loads_nothing(*arguments)
    assert code == 2
    assert says in error
