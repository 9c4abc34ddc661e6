"""Where a job writes to: files below one address, of any file system that fsspec knows.

    job.json                what the job is: its file and its settings
    results/00003.parquet   the records of a window of rows that is done, in the order of the file
    pictures/ab/ab12....png the pictures, named by SHA-256 of their bytes; or shards, one a window
    manifest.json           written last
    work/00003/             of a window that is not done: records of its batches, and their pictures
    job.lock                held by the process that runs the job, in folders

A file is there whole or not at all: where a file system may show half of one, it is written in `work` and renamed. What
is recorded is true, what is not is drawn again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from max_zimage.batch.addresses import absolute
from max_zimage.host.addressed_files import AddressedFiles

WORK, RESULTS, PICTURES = "work", "results", "pictures"
JOB, MANIFEST = "job.json", "manifest.json"
_SCRATCH = f"{WORK}/scratch"
_LOCK = "job.lock"  # stays: one that is removed while it is held would let somebody else hold another


class Output(AddressedFiles):
    """Files below an address.

    Args:
        url: A folder, which need not be there, or a URL that fsspec knows.

    Raises:
        ValueError: If there is no such file system, or its package is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = absolute(url)  # for processes that begin elsewhere
        super().__init__(self.url, self.url)

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[BinaryIO]:
        """A file to be written piece by piece, which is there at the end, if nothing was raised.

        Raises:
            ValueError: If that cannot be done.
        """
        with self._told("cannot be written to"):
            if self.is_folder:
                with self._renamed(path) as scratch, open(scratch, "wb") as file:
                    yield file
                    _to_disk(file)
                return
            with tempfile.NamedTemporaryFile() as own:
                yield cast(BinaryIO, own)
                own.flush()
                if self.is_whole:
                    self._system.put_file(own.name, self._full(path))
                else:
                    with self._renamed(path) as scratch:
                        self._system.put_file(own.name, scratch)

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[BinaryIO]:
        """A file to read parts of.

        Raises:
            ValueError: If it cannot be read.
        """
        with self._told("cannot be read"), self._system.open(self._full(path), "rb") as file:
            yield file

    def names(self, folder: str) -> list[str]:
        """Names of what is in a folder, sorted; none where there is no folder.

        Raises:
            ValueError: If it cannot be read.
        """
        with self._told("cannot be read"):
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self._full(folder), detail=False)
            except FileNotFoundError:
                return []
            return sorted(each.rstrip("/").rpartition("/")[2] for each in found)

    def has(self, path: str) -> bool:
        """Whether there is such a file.

        Raises:
            ValueError: If that cannot be found out.
        """
        with self._told("cannot be read"):
            return bool(self._system.exists(self._full(path)))

    def move(self, path: str, to: str) -> bool:
        """Give a file another name, where it is whole as soon as it is there.

        Returns:
            Whether there was such a file.

        Raises:
            ValueError: If that cannot be done.
        """
        one, other = self._full(path), self._full(to)
        with self._told("cannot be written to"):
            self._make_folder_of(other)
            try:
                self._rename(one, other)
            except FileNotFoundError:
                return False
            return True

    def remove(self, path: str) -> None:
        """Remove a file or a folder with all that is in it, unless it is gone.

        Raises:
            ValueError: If that cannot be done.
        """
        with self._told("cannot be written to"), contextlib.suppress(FileNotFoundError):
            if self.is_folder:
                _remove(Path(self._full(path)))
            else:
                self._system.rm(self._full(path), recursive=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes of this machine from running a job here at the same time.

        Raises:
            ValueError: If one does.
        """
        if not self.is_folder:
            yield
            return
        with self._told("cannot be written to"):
            path = Path(self._full(_LOCK))
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"{self.url}: another process runs a job here; wait for it, or end it") from error
            except OSError:  # the file system has no locks
                pass
            yield
        finally:
            os.close(handle)

    def _unfinished(self, full: str) -> str:
        scratch = self._full(f"{_SCRATCH}/{secrets.token_hex(12)}")
        for each in (scratch, full):
            self._make_folder_of(each)
        return scratch

    def _write(self, full: str, content: bytes) -> None:
        if not self.is_folder:
            super()._write(full, content)
            return
        with open(full, "wb") as file:
            file.write(content)
            _to_disk(file)

    def _make_folder_of(self, full: str) -> None:
        folder = full.rpartition("/")[0]
        if self.is_folder:
            os.makedirs(folder, exist_ok=True)
        else:
            self._system.makedirs(folder, exist_ok=True)


def _to_disk(file: BinaryIO) -> None:
    """Have the system write all that was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # somebody else may be at it
    else:
        path.unlink()
