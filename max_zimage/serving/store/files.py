"""The files of a store that servers share.

The address may be that of a folder in which there is something else. What is not named as files are named here is
nobody's to list, to count or to remove.
"""

from __future__ import annotations

import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from max_zimage.host.addressed_files import AddressedFiles
from max_zimage.serving.addresses import MEMORY

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


class StoreFiles(AddressedFiles):
    """Files below an address.

    Attributes:
        is_shared: Whether other processes may have the same files.

    Args:
        address: From `store_address`.

    Raises:
        StoreError: If there is no such file system, or its package is missing.
    """

    failure = StoreError

    def __init__(self, address: str) -> None:
        self.is_shared = address != MEMORY
        # A root of its own: fsspec has one memory for the whole process.
        url = address if self.is_shared else f"memory://{secrets.token_hex(8)}"
        super().__init__(url, address, skip_instance_cache=True)

    def check(self, folders: tuple[str, ...]) -> None:
        """Make the folders, and try all that will be done with a file.

        Raises:
            StoreError: If something cannot be done, or files do not say when they were written.
        """
        with self._told("cannot be written to"):
            for folder in folders:
                if self.is_folder:  # what is drawn is nobody else's on this machine
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
            raise StoreError(f"{self._shown} does not give back what was written to it")

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
            raise StoreError(f"{self._shown} does not say when its files were written; take another kind of store")
        return StoredFile(f"{folder}/{name}", int(found["size"]), float(written))

    def _unfinished(self, full: str) -> str:
        folder, _, name = full.rpartition("/")
        return f"{folder}/{_UNFINISHED}{secrets.token_hex(4)}-{name}"
