"""The random checkpoints that tests of this room share, of which one is compiled, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.references.diffusion_gemmas import Both


@pytest.fixture(scope="session")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Sizes that kernels like, six layers in the default pattern, canvases of 32 tokens."""
    from tests.references.diffusion_gemmas import USUAL, pair

    return pair(tmp_path_factory.mktemp("usual"), USUAL, 32, seed=3)


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of sizes that fill no vector, a small vocabulary, canvases of 5 tokens."""
    from tests.references.diffusion_gemmas import ODD, write

    directory = tmp_path_factory.mktemp("odd")
    write(directory, ODD, 5, seed=2)
    return directory
