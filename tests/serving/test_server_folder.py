"""The server's folder for temporary files: its own, made again when it is swept, removed when its server is gone."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from max_zimage.host import temporary
from max_zimage.serving.folder import PREFIX, ServerFolder, remove_stale
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.supervisor import Queues, Worker, WorkerFailed

HOLDER = """
import os, sys
from max_zimage.serving.folder import ServerFolder
folder = ServerFolder()
(folder.path / "large").write_bytes(bytes(1000))
print(folder.path, flush=True)
sys.stdin.read()
os._exit(1)
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for temporary files with a short name, as tmp_path has not."""
    short = Path(tempfile.mkdtemp(prefix="mz-"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    monkeypatch.setenv("TMPDIR", str(short))
    yield short
    shutil.rmtree(short)


def test_it_is_private_and_goes(base: Path) -> None:
    with ServerFolder() as folder:
        assert folder.path.parent == base
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        (folder.path / "deep").mkdir()
    assert list(base.iterdir()) == []


def test_a_place_whose_name_is_too_long_for_sockets(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = base / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with ServerFolder() as folder:
        assert folder.path.parent == Path("/tmp")


@pytest.mark.parametrize("how", ["folder", "contents"])
def test_swept_it_is_made_again_and_is_still_its_own(base: Path, how: str) -> None:
    with ServerFolder() as folder:
        if how == "folder":
            shutil.rmtree(folder.path)
        else:
            for each in folder.path.iterdir():
                each.unlink()
        folder.restore()
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        assert remove_stale(base) == []  # locked again
        old = 1e9
        os.utime(folder.path, (old, old))
        folder.restore()
        assert folder.path.stat().st_mtime > old
    assert list(base.iterdir()) == []


def test_what_somebody_else_put_there_is_not_used(base: Path) -> None:
    with ServerFolder() as folder:
        shutil.rmtree(folder.path)
        folder.path.symlink_to(base)
        with pytest.raises(PermissionError, match="somebody else has put something there"):
            folder.restore()
        folder.path.unlink()


def test_only_folders_of_servers_that_are_gone_are_removed(base: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        held = Path(holder.stdout.readline().strip())
        (base / f"{PREFIX}pictures").mkdir()  # looks like one of ours, and holds what somebody has put there
        (base / f"{PREFIX}pictures" / "mine.png").touch()
        (base / f"{PREFIX}notes-of-mine").mkdir()
        (base / f"{PREFIX}abcdefgh").symlink_to(base)
        (base / f"{PREFIX}emptyone").mkdir()
        others = {f"{PREFIX}pictures", f"{PREFIX}notes-of-mine", f"{PREFIX}abcdefgh"}
        with ServerFolder() as mine:
            assert {path.name for path in base.iterdir()} == {held.name, mine.path.name, *others}
        holder.kill()
        holder.wait()
        assert (held / "large").exists()
        with ServerFolder() as mine:
            assert {path.name for path in base.iterdir()} == {mine.path.name, *others}


def test_a_process_whose_folder_is_gone_makes_it_again(base: Path) -> None:
    temporary.make_sure()
    shutil.rmtree(base)
    temporary.make_sure()
    assert stat.S_IMODE(base.stat().st_mode) == 0o700


def test_sockets_find_their_folder_and_a_worker_whose_socket_is_gone_is_started_again(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = base / "above" / "folder"
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    lives = []

    async def life(worker: Worker) -> None:
        lives.append(worker)
        queues = Queues(path)
        if len(lives) > 1:
            async with queues.model_worker_queues(), queues.model_worker_proxy():
                raise RuntimeError("the second life got so far")
        async with queues.model_worker_proxy():  # what the worker's side has made is gone
            raise AssertionError("the server waits for ever")

    monkeypatch.setattr(Worker, "_run", life)
    state = SimpleNamespace(
        metrics=Metrics(), dispatcher=SimpleNamespace(detach=lambda: None), was_ready=False, settings=None
    )
    with pytest.raises(WorkerFailed, match="could not load"):
        asyncio.run(Worker(None, state, 1, None).keep_running())  # type: ignore[arg-type]
    assert len(lives) == 2
    assert "was removed while the worker started; starting it again" in caplog.text
    assert "the second life got so far" in caplog.text
