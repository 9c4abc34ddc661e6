"""The command line with a pipeline that is there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from max_zimage import ZImagePipeline
from max_zimage.cli.main import main
from tests.references.diffusers_runs import Pair

Repeat = Callable[..., tuple[int, str]]


@pytest.fixture
def repeat(
    embedded: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Repeat:
    """`max-zimage generate` in an empty folder, drawing with the pipeline that is there: exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ZImagePipeline, "from_prepared", lambda prepared: embedded.ours)

    def run(*arguments: str) -> tuple[int, str]:
        code = main(("generate", "--quiet", *arguments))
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def loads_nothing(repeat: Repeat, monkeypatch: pytest.MonkeyPatch) -> Repeat:
    """The same, but loading fails."""

    def from_prepared(prepared: object) -> None:
        raise AssertionError("loading began")

    monkeypatch.setattr(ZImagePipeline, "from_prepared", from_prepared)
    return repeat
