"""Files below one address, of any file system that fsspec knows: a folder, an object store, this process's memory.

A file is there whole or not at all. Where a file system may show half of one while it is written, it is written under
another name first and renamed.

Reference: fsspec, `AbstractFileSystem`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec

_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "memory"})
"""Protocols whose file is replaced in one go by writing it."""


class AddressedFiles:
    """Files below an address.

    Attributes:
        failure: What is raised of whatever a file system raises.
        is_folder: Whether they are files of this machine.
        is_whole: Whether a file is replaced in one go.

    Args:
        url: A folder, or a URL that fsspec knows.
        shown: What errors call it.
        **options: Of the file system.

    Raises:
        failure: If there is no such file system, or its package is missing.
    """

    failure: ClassVar[type[Exception]] = ValueError

    def __init__(self, url: str, shown: str, **options: Any) -> None:
        self._shown = shown
        with self._told("cannot be opened"):
            self._system, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
            self._root: str = root.rstrip("/")
        protocols = self._system.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        self.is_folder, self.is_whole = "file" in names, not _WHOLE.isdisjoint(names)

    def put(self, path: str, content: bytes) -> None:
        """Write a file, or replace it.

        Raises:
            failure: If that cannot be done.
        """
        with self._told("cannot be written to"):
            if self.is_whole:
                self._system.pipe_file(self._full(path), content)
                return
            with self._renamed(path) as unfinished:
                self._write(unfinished, content)

    def get(self, path: str) -> bytes | None:
        """A file's content; None if there is none.

        Raises:
            failure: If it cannot be read.
        """
        with self._told("cannot be read"):
            try:
                content: bytes = self._system.cat_file(self._full(path))
            except FileNotFoundError:
                return None
            return content

    def _unfinished(self, full: str) -> str:
        """Another name, to write a file to before it gets its own; both have their folders.

        Args:
            full: With the root before it.
        """
        raise NotImplementedError

    def _write(self, full: str, content: bytes) -> None:
        """Write a file under the other name."""
        self._system.pipe_file(full, content)

    @contextmanager
    def _renamed(self, path: str) -> Iterator[str]:
        """Another name to write to, renamed at the end."""
        full = self._full(path)
        unfinished = self._unfinished(full)
        yield unfinished
        self._rename(unfinished, full)

    def _rename(self, full: str, to: str) -> None:
        (os.replace if self.is_folder else self._system.mv)(full, to)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Whatever a file system raises, as one kind of error."""
        try:
            yield
        except self.failure:
            raise
        except Exception as error:
            kind, said = type(error).__name__, getattr(error, "strerror", None) or str(error)
            raise self.failure(f"{self._shown} {what}: {kind}{': ' if said else ''}{said}") from error
