"""Two processes that want the same artifact: one compiles it, the other one waits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from max_zimage.compile.turns import FILE, turn
from tests.paths import ROOT

HOLDER = """
import sys
from max_zimage.compile.turns import turn
with turn("denoise-1"):
    print("has it", flush=True)
    sys.stdin.read()
"""


def test_who_comes_second_waits_until_the_first_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    """A kill is an end, too; other artifacts are compiled meanwhile."""
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command, pipe = [sys.executable, "-c", HOLDER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"has it\n"
        with turn("denoise-2"):
            assert notes == []
        killer = threading.Timer(0.5, holder.kill)
        killer.start()
        with turn("denoise-1"):
            assert holder.wait(timeout=1) < 0
        killer.join()
    assert notes == ["another process compiles the same graphs; waiting for it"]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_where_nothing_can_be_locked_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "loop"):
        monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(folder))
        if folder.name == "loop":
            folder.mkdir()
            (folder / FILE).symlink_to("nowhere")
        with turn("denoise-1"):
            pass
    assert not (tmp_path / "loop" / "nowhere").exists()
