"""Compiling where MAX's cache or the folder for temporary files cannot take what goes there."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from max import _core
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef

from max_zimage.compile import compiler, modules
from max_zimage.compile.compiler import compile_graph
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.latents import PackLatents
from max_zimage.host import folders
from max_zimage.host.folders import artifact_folder, no_room, problem, room_to_compile

Usage = namedtuple("Usage", "total used free")


def test_where_compiled_graphs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MAX_ZIMAGE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert artifact_folder() == tmp_path / ".cache" / "max_zimage"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert artifact_folder() == tmp_path / "x" / "max_zimage"
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path / "own"))
    assert artifact_folder() == tmp_path / "own"


def test_what_is_wrong_with_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem(tmp_path / "new" / "folder", 2**20) is None
    assert problem(Path("/dev/null/none")) == "Not a directory"
    assert problem(Path("/proc/none")) == "No such file or directory"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**30, 2**30, 3 * 2**20))
    assert problem(tmp_path, 2**20) is None
    assert problem(tmp_path, 2**23) == "3 MiB are free"
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**19, 2**19))
    assert problem(tmp_path, 2**20) == "files may have 0.5 MiB (ulimit -f)"


@pytest.mark.parametrize("place", [None, "/dev/null/x"])
def test_max_keeps_nothing_where_its_cache_has_no_place(
    place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODULAR_CACHE_DIR", raising=False)
    monkeypatch.setattr(_core.engine, "max_cache_dir", lambda: place)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with room_to_compile():
        inside = Path(os.environ["MODULAR_CACHE_DIR"])
        assert inside.is_dir()
        assert inside.parent == tmp_path
    assert "MODULAR_CACHE_DIR" not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_max_keeps_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODULAR_CACHE_DIR", str(tmp_path))
    with room_to_compile():
        assert os.environ["MODULAR_CACHE_DIR"] == str(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**30, 2**30, 2**20))
    with room_to_compile():  # there is no room anywhere
        assert os.environ["MODULAR_CACHE_DIR"] == "/dev/null/none"
    assert os.environ["MODULAR_CACHE_DIR"] == str(tmp_path)


def test_temporary_files_go_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_OTHER_TEMPORARY", (str(tmp_path / "other"),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1, 1, 0) if folder == tmp_path else usage(folder))
    with room_to_compile():
        assert tempfile.gettempdir() == str(tmp_path / "other")
    assert tempfile.tempdir == str(tmp_path)


def test_a_compile_that_max_gives_up_for_want_of_room_is_done_without_its_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What MAX 26.7 raises if its cache is on a full disk, which may fill after it was looked at."""
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("MODULAR_CACHE_DIR", str(tmp_path / "max"))
    monkeypatch.setattr(folders, "_MAX_ROOM", 0)
    seen: list[str] = []

    def compile_now(definitions: object) -> object:
        seen.append(os.environ["MODULAR_CACHE_DIR"])
        if len(seen) > 1:
            raise KeyError("done")
        raise RuntimeError("Failed to compile the model.") from RuntimeError(
            "cannot write to file to filesystem cache since available space(65536) is not enough to write 3406196 bytes"
        )

    monkeypatch.setattr(modules, "_compiled_now", compile_now)
    module = build(lambda: PackLatents(4), DType.float32, DeviceRef.CPU())
    types = module.input_types(DType.float32, DeviceRef.CPU())
    graph = compile_graph("pack", module, types, {}, InferenceSession([CPU()]), spec=None, device=CPU())
    with pytest.raises(KeyError):
        compiler.compile_together([graph])
    assert seen[0] == str(tmp_path / "max")
    assert seen[1] != seen[0]
    assert not no_room(RuntimeError("Failed to compile the model."))
