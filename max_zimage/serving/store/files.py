"""Files below one address, of any file system that fsspec knows: a folder, an object store, this process's memory.

A file is there whole or not at all. Where a file system may show half of one while it is written, it is written under
another name first and renamed.

The address may be that of a folder in which there is something else. What is not named as files are named here is
nobody's to list, to count or to remove.

Reference: fsspec, `AbstractFileSystem`.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from max_zimage.serving.addresses import MEMORY

WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "memory"})
"""Protocols whose file is replaced in one go by writing it."""
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
_UNFINISHED = ".new-"
_PROBE = rf"{re.escape(_UNFINISHED)}[0-9a-f]{{16}}"
_OWN = re.compile(r"[0-9a-f]{40}")
"""Names of files, as `Seal.path` gives them."""
_BEGUN = re.compile(rf"{re.escape(_UNFINISHED)}[0-9a-f]{{8}}-([0-9a-f]{{40}}|{_PROBE})|{_PROBE}")
"""Names under which files are written, and those of the file that a store is tried with."""


class StoreError(Exception):
    """A store that cannot be reached, read or written."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a store.

    Attributes:
        path: Below the store's address.
        size: Bytes.
        written: Unix time.
    """

    path: str
    size: int
    written: float


class StoreFiles:
    """Files below an address.

    Attributes:
        is_shared: Whether other processes may have the same files.

    Args:
        address: From `store_address`.

    Raises:
        StoreError: If there is no such file system, or its package is missing.
    """

    def __init__(self, address: str) -> None:
        self._address, self.is_shared = address, address != MEMORY
        with self._told("cannot be opened"):
            # A root of its own: fsspec has one memory for the whole process.
            url = address if self.is_shared else f"memory://{secrets.token_hex(8)}"
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            self._system, root = fsspec.core.url_to_fs(url, **options)
            self._root: str = root.rstrip("/")
        protocols = self._system.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        self._is_folder, self._whole = "file" in names, not WHOLE.isdisjoint(names)

    def check(self, folders: tuple[str, ...]) -> None:
        """Make the folders, and try all that will be done with a file.

        Raises:
            StoreError: If something cannot be done, or files do not say when they were written.
        """
        with self._told("cannot be written to"):
            for folder in folders:
                if self._is_folder:  # what is drawn is nobody else's on this machine
                    Path(self._root).mkdir(mode=0o700, parents=True, exist_ok=True)
                    Path(self._full(folder)).mkdir(mode=0o700, exist_ok=True)
                else:
                    self._system.makedirs(self._full(folder), exist_ok=True)
        path = f"{folders[0]}/{_UNFINISHED}{secrets.token_hex(8)}"
        self.put(path, b"first")
        self.put(path, b"second")
        found, listed = self.get(path), [each for each in self._named(folders[0], _BEGUN) if each.path == path]
        self.remove(path)
        if found != b"second" or [each.size for each in listed] != [6] or self.get(path) is not None:
            raise StoreError(f"{self._address} does not give back what was written to it")

    def put(self, path: str, content: bytes) -> None:
        """Write a file, or replace it.

        Raises:
            StoreError: If that cannot be done.
        """
        with self._told("cannot be written to"):
            if self._whole:
                self._system.pipe_file(self._full(path), content)
                return
            folder, _, name = self._full(path).rpartition("/")
            unfinished = f"{folder}/{_UNFINISHED}{secrets.token_hex(4)}-{name}"
            self._system.pipe_file(unfinished, content)
            self._system.mv(unfinished, self._full(path))

    def get(self, path: str) -> bytes | None:
        """A file's content; None if there is none.

        Raises:
            StoreError: If it cannot be read.
        """
        with self._told("cannot be read"):
            try:
                content: bytes = self._system.cat_file(self._full(path))
            except FileNotFoundError:
                return None
            return content

    def remove(self, path: str) -> None:
        """Remove a file, unless somebody else has.

        Raises:
            StoreError: If it cannot be removed.
        """
        with self._told("cannot be written to"), suppress(FileNotFoundError):
            self._system.rm_file(self._full(path))

    def listed(self, folder: str) -> list[StoredFile]:
        """The files of a folder, the oldest first; those that somebody is writing, or that are of others, are not.

        Raises:
            StoreError: If it cannot be read.
        """
        return self._named(folder, _OWN)

    def abandoned(self, folder: str, seconds: float) -> list[StoredFile]:
        """Files that somebody began to write so long ago that nobody will finish them.

        Raises:
            StoreError: If the folder cannot be read.
        """
        before = time.time() - seconds
        return [each for each in self._named(folder, _BEGUN) if each.written < before]

    def _named(self, folder: str, names: re.Pattern[str]) -> list[StoredFile]:
        with self._told("cannot be read"):
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self._full(folder), detail=True)
            except FileNotFoundError:  # an object store has no folder where there is no file
                return []
            files = [
                self._described(folder, name, each)
                for each in found
                if each["type"] == "file" and names.fullmatch(name := each["name"].rsplit("/", 1)[-1])
            ]
        return sorted(files, key=lambda each: each.written)

    def _described(self, folder: str, name: str, found: dict[str, Any]) -> StoredFile:
        written = next((found[key] for key in _TIMES if found.get(key) is not None), None)
        if isinstance(written, str):
            written = datetime.fromisoformat(written)
        if isinstance(written, datetime):
            written = written.timestamp()
        if written is None:
            raise StoreError(f"{self._address} does not say when its files were written; take another kind of store")
        return StoredFile(f"{folder}/{name}", int(found["size"]), float(written))

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Whatever a file system raises, as one kind of error."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise StoreError(f"{self._address} {what}: {said}") from error
