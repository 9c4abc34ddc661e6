"""Where a conversion goes: what stands there already, the room on the disk, and a result that appears when complete.

Everything is written under a name of its own beside the target, `NAME.unfinished-PID`, and renamed at the end. An error
takes it away; a process that is killed leaves it under that name, and nothing loads it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from max_zimage import progress
from max_zimage.checkpoint.locate import COMPONENTS, CONFIG_FILES
from max_zimage.checkpoint.model_index import INDEX
from max_zimage.errors import CheckpointError
from max_zimage.host.sizes import gigabytes

UNFINISHED = ".unfinished-"
_REPLACED = ".replaced-"
_OF_A_MODEL = {INDEX, "tokenizer", "README.md", "LICENSE", "samples", *COMPONENTS, *CONFIG_FILES}
_BESIDES = 4 << 20  # bytes of headers and configurations, generously


def target_problems(target: Path, *, folder: bool, overwrite: bool, read: Sequence[Path]) -> list[str]:
    """Why a result cannot have this place.

    Args:
        target: The file or folder.
        folder: Which of them the result is.
        overwrite: Whether what is there may be replaced.
        read: Files and folders that the result is made from.
    """
    place = target.resolve()
    for source in read:
        there = source.resolve()
        if place == there:
            return [f"the output {target} is what is read; name another place, the input is never replaced"]
        if place.is_relative_to(there) and there.is_dir():
            return [f"the output {target} is inside the input {source}; name a place outside"]
        if there.is_relative_to(place):
            return [f"the input {source} is inside the output {target}, which would replace it; name another place"]
    if not target.exists() and not target.is_symlink():
        return []
    if target.is_dir() != folder:
        kinds = ("a folder", "a file") if folder else ("a file", "a folder")
        return [f"the output is {kinds[0]}, and {target} is {kinds[1]}; name another place"]
    if folder and not any(target.iterdir()):
        return []
    if not overwrite:
        return [f"{target} is there already; name another place, or use --overwrite"]
    if folder and (others := sorted({path.name for path in target.iterdir()} - _OF_A_MODEL)):
        return [
            f"{target} holds what no model does, {', '.join(others[:5])}{' and more' if len(others) > 5 else ''}; "
            "--overwrite would remove it with the rest, so name another place"
        ]
    return []


def check_room(target: Path, needed: int) -> None:
    """Compare what will be written with what is free; what is replaced stays until the end.

    Raises:
        CheckpointError: If it does not fit.
    """
    existing = next(folder for folder in target.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed + _BESIDES > free:
        raise CheckpointError(
            f"the output needs {gigabytes(needed)}, {gigabytes(free)} are free at {existing}; free some, choose a "
            "smaller type, or another disk"
        )


@contextlib.contextmanager
def appearing(target: Path, *, folder: bool, overwrite: bool) -> Iterator[Path]:
    """A place to write to that becomes the target at the end.

    Args:
        target: The file or folder.
        folder: Which of them it is.
        overwrite: Whether what is there is replaced.

    Yields:
        The place; a folder is made, a file is not.

    Raises:
        CheckpointError: If something has come to stand there meanwhile.
        OSError: If files cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{glob.escape(target.name)}{UNFINISHED}*"):
        progress.note(f"{left} is there: a conversion that is under way, or was killed; in that case remove it")
    scratch = target.with_name(f"{target.name}{UNFINISHED}{os.getpid()}")
    try:
        if folder:
            scratch.mkdir()
        yield scratch
        if problems := target_problems(target, folder=folder, overwrite=overwrite, read=()):
            raise CheckpointError(problems[0])
        _rename(scratch, target)
        _sync(target.parent)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch)
        else:
            scratch.unlink(missing_ok=True)


def _rename(scratch: Path, target: Path) -> None:
    if not scratch.is_dir() or not target.is_dir():
        os.replace(scratch, target)
        return
    replaced = target.with_name(f"{target.name}{_REPLACED}{os.getpid()}")
    os.rename(target, replaced)
    try:
        os.rename(scratch, target)
    except OSError:
        os.rename(replaced, target)
        raise
    if replaced.is_symlink():
        replaced.unlink()
    else:
        shutil.rmtree(replaced)


def sync_tree(folder: Path) -> None:
    """Have the system write all folders of a tree to the disk; files see to themselves."""
    for path, _, _ in os.walk(folder):
        _sync(Path(path))


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
