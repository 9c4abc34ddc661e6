"""Processes that share a folder of compiled graphs: one compiles, the others load; none needs to write there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from max_zimage.compile.kept_kernels import PREFIX
from max_zimage.compile.turns import FILE
from tests.fuzzers.artifacts import DAMAGES
from tests.paths import ROOT

PROGRAM = """
import sys
from max_zimage.compile.modules import counts
from max_zimage.progress import Silent
from tests.compile.test_artifacts import packed
Silent.note = lambda self, text: print("note", text, flush=True)
print("ready", flush=True)
for _ in sys.stdin:
    print(float(packed().sum()), dict(counts), flush=True)
"""
_C = ctypes.CDLL(None)
_PR_CAPBSET_DROP, _OVERRIDES = 24, (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: root, too, obeys modes without them


def obey_modes() -> None:
    for each in _OVERRIDES:
        _C.prctl(_PR_CAPBSET_DROP, each, 0, 0, 0)


@contextlib.contextmanager
def processes(folder: Path, count: int, *, obeys: bool = False) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that have imported everything, and compile or load a graph for each line that they get."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MAX_ZIMAGE_CACHE": str(folder)}
    pipe, command = subprocess.PIPE, [sys.executable, "-c", PROGRAM]
    before = obey_modes if obeys and os.geteuid() == 0 else None
    found = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True, preexec_fn=before)
        for _ in range(count)
    ]
    try:
        for each in found:
            assert line_of(each) == "ready"
        yield found
    finally:
        for each in found:
            each.kill()
            each.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def told(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    """What it notes, and what came of the graph."""
    notes: list[str] = []
    while (line := line_of(process)).startswith("note "):
        notes.append(line.removeprefix("note "))
    return notes, line


SUM = float(sum(range(4 * 4 * 6)))
COMPILED, LOADED = f"{SUM} {{'hits': 0, 'misses': 1}}", f"{SUM} {{'hits': 1, 'misses': 0}}"


def test_processes_that_start_cold_together_compile_once(tmp_path: Path) -> None:
    with processes(tmp_path, 3) as started:
        for each in started:
            go(each)
        found = [told(each) for each in started]
    assert sorted(line for _, line in found) == sorted([COMPILED, LOADED, LOADED])
    assert {note for notes, _ in found for note in notes} <= {
        "another process compiles the same graphs; waiting for it"
    }
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == FILE
    assert len(names) == 3
    assert names[1].startswith(PREFIX)  # their package
    assert names[2].endswith(".mef")


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root can write anywhere")
def test_a_folder_that_may_only_be_read_is_loaded_from(tmp_path: Path) -> None:
    """As in an image or a mount; a damaged artifact there is compiled again, and costs no more than that."""
    folder = tmp_path / "graphs"
    with processes(folder, 1) as (writer,):
        go(writer)
        assert told(writer) == ([], COMPILED)
    (artifact,) = folder.glob("*.mef")
    artifact.chmod(0o444)
    folder.chmod(0o555)
    try:
        with processes(folder, 1, obeys=True) as (reader,):
            go(reader)
            assert told(reader) == ([], LOADED)
            folder.chmod(0o755)
            artifact.chmod(0o644)
            artifact.write_bytes(DAMAGES["inverted"](artifact.read_bytes(), Random(0)))
            artifact.chmod(0o444)
            folder.chmod(0o555)
            go(reader)
            notes, line = told(reader)
        assert line == f"{SUM} {{'hits': 1, 'misses': 1}}"
        assert len(notes) == 2
        assert notes[0].startswith(f"{artifact} ")
        assert notes[0].endswith("its graphs are compiled again")
        assert notes[1].startswith(f"compiled graphs cannot be kept in {folder}: Permission denied")
        assert [path.name for path in folder.glob("*.mef")] == [artifact.name]
    finally:
        folder.chmod(0o755)
