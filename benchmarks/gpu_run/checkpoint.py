"""The full-size checkpoint, written in the background from the first call on, while what needs none is measured."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import ROOT

_POLL_SECONDS = 0.2


def folder(work: Path, *, small: bool) -> Path:
    """Where the checkpoint is."""
    return work / f"checkpoint{'-small' if small else ''}"


def is_whole(work: Path, *, small: bool) -> bool:
    """Whether it is written: its index comes last."""
    return (folder(work, small=small) / "model_index.json").is_file()


def begin_writing(work: Path, *, small: bool) -> None:
    """Start a writer unless the checkpoint is there or one is at it; it goes on when the caller ends."""
    if is_whole(work, small=small) or _writer(work, small=small) is not None:
        return
    size = ["--size", "small", "--dtype", "float32"] if small else ["--size", "full", "--dtype", "bfloat16"]
    command = [sys.executable, "-m", "benchmarks.make_checkpoint", str(folder(work, small=small))]
    with _log(work, small=small).open("wb") as log:
        writer = subprocess.Popen(
            [*command, *size, "--turbo", "--force", "--quiet"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _pid(work, small=small).write_text(str(writer.pid), encoding="utf-8")
    # For a moment the system still shows it as what it was started from, or as nothing.
    while _writer(work, small=small) is None and writer.poll() is None:
        time.sleep(0.01)


def wait(work: Path, *, small: bool, seconds: float) -> Path:
    """The checkpoint's folder, once it is whole.

    Args:
        work: Folder of what is kept between steps.
        small: Whether sizes are small.
        seconds: To wait at most.

    Raises:
        TimeoutError: If it is not whole by then.
        RuntimeError: If its writer has ended without it.
    """
    end = time.monotonic() + seconds
    begin_writing(work, small=small)
    while not is_whole(work, small=small):
        if _writer(work, small=small) is None and not is_whole(work, small=small):
            raise RuntimeError(f"no checkpoint was written: {_log(work, small=small).read_text().strip()[-300:]}")
        if time.monotonic() > end:
            raise TimeoutError(f"the checkpoint is not written after {seconds:.0f} s more")
        time.sleep(_POLL_SECONDS)
    return folder(work, small=small)


def _writer(work: Path, *, small: bool) -> int | None:
    """The process that writes, if it lives."""
    with contextlib.suppress(OSError, ValueError):
        number = int(_pid(work, small=small).read_text(encoding="utf-8"))
        with contextlib.suppress(ChildProcessError):
            os.waitpid(number, os.WNOHANG)  # one of this process' own that has ended is no longer there then
        if b"make_checkpoint" in Path(f"/proc/{number}/cmdline").read_bytes():
            return number
    return None


def _pid(work: Path, *, small: bool) -> Path:
    return work / f"{folder(work, small=small).name}.pid"


def _log(work: Path, *, small: bool) -> Path:
    return work / f"{folder(work, small=small).name}.log"
