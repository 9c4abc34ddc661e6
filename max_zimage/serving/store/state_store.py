"""Pictures by URL, what became of requests, and wishes to end them: in memory, or where all replicas of a server look.

The oldest go when they are too old or too many. Several replicas do so each for itself, from what it has found at its
last look: for a moment there may be more than the bound by what the others have written since.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from max_zimage.serving.store.files import StoredFile, StoreError, StoreFiles
from max_zimage.serving.store.sealed import Entry, Seal, SealError

_log = logging.getLogger("max_zimage.serving")

_FOLDERS = PICTURES, REQUESTS, CANCELS, CURRENTS = "pictures", "requests", "cancels", "currents"
KINDS = frozenset({"image/png", "image/jpeg", "image/webp"})
_SWEEP = 60.0  # seconds between two looks at all files
_SHARE = 16  # and after this part of the room has been filled
_PATIENCE = 20.0  # seconds for one answer of the store
_THREADS = 4
T = TypeVar("T")


class TooLarge(Exception):
    """A picture that is larger than all the room there is."""


@dataclass(frozen=True)
class Picture:
    """One file.

    Attributes:
        content: Its bytes.
        kind: Its media type.
    """

    content: bytes
    kind: str


class StateStore:
    """What is remembered of requests. Its methods wait for a thread, and not longer than some seconds.

    Attributes:
        is_shared: Whether other replicas look there too.
        room: Bytes of all files.

    Args:
        files: Where; `StoreFiles.check` is called here.
        seal: Of the server's key.
        room: Bytes.
        seconds: For which a file is kept.

    Raises:
        StoreError: If the files cannot be used.
    """

    def __init__(self, files: StoreFiles, seal: Seal, *, room: int, seconds: float) -> None:
        files.check(_FOLDERS)
        self._files, self._seal, self.room, self._seconds = files, seal, room, seconds
        self.is_shared = files.is_shared
        self._lock = threading.Lock()
        self._used = self._since = 0  # bytes of all files as far as known, and those written since the last look
        self._looked = float("-inf")
        self._threads = ThreadPoolExecutor(_THREADS, "state-store")

    async def put_picture(self, content: bytes, kind: str) -> str:
        """Keep a picture, and return its name, which cannot be guessed.

        Args:
            content: The file.
            kind: One of `KINDS`.

        Raises:
            TooLarge: If it is larger than the whole room.
            StoreError: If it cannot be written.
        """
        name = secrets.token_urlsafe(24)
        await self._run(self._put, PICTURES, name, Entry({"kind": kind, "written": time.time()}, content))
        return name

    async def picture(self, name: str) -> Picture | None:
        """A picture; None if there is none of that name, or not any more.

        Raises:
            StoreError: If the store cannot be read.
        """
        entry = await self._run(self._get, PICTURES, name)
        if entry is None or entry.facts.get("kind") not in KINDS:
            return None
        return Picture(entry.content, entry.facts["kind"])

    async def put_request(self, name: str, facts: dict[str, Any]) -> None:
        """Write down how a request stands.

        Raises:
            TooLarge: If it is larger than the whole room.
            StoreError: If it cannot be written.
        """
        await self._run(self._put, REQUESTS, name, Entry(facts | {"written": time.time()}))

    async def request(self, name: str) -> dict[str, Any] | None:
        """How a request stood, with the Unix time at which that was `written`; None if nothing is known of it.

        Raises:
            StoreError: If the store cannot be read.
        """
        entry = await self._run(self._get, REQUESTS, name)
        return None if entry is None else entry.facts

    async def ask_to_cancel(self, name: str, run: str) -> None:
        """Leave a wish for the replica that has a request.

        Args:
            name: The request's id.
            run: Which of the requests that have had this id.

        Raises:
            StoreError: If it cannot be written.
        """
        await self._run(self._put, CANCELS, name, Entry({"run": run, "written": time.time()}))

    async def wishes(self, names: list[str]) -> dict[str, str]:
        """The wishes to end some requests, id -> run; each is told once.

        Raises:
            StoreError: If the store cannot be read.
        """
        return await self._run(self._wishes, names)

    async def put_current(self, run: str, entry: Entry) -> None:
        """Write down how a request stands whose client knows no id.

        Args:
            run: By which it is told from all others.
            entry: How it stands.

        Raises:
            TooLarge: If it is larger than the whole room.
            StoreError: If it cannot be written.
        """
        await self._run(self._put, CURRENTS, run, Entry(entry.facts | {"written": time.time()}, entry.content))

    async def remove_current(self, run: str) -> None:
        """Forget such a request.

        Raises:
            StoreError: If it cannot be removed.
        """
        await self._run(self._files.remove, self._seal.path(CURRENTS, run))

    async def currents(self, seconds: float) -> list[Entry]:
        """All such requests, of all replicas, that were written down within so many seconds.

        Raises:
            StoreError: If the store cannot be read.
        """
        return await self._run(self._currents, seconds)

    async def sweep(self) -> None:
        """Remove what is too old, where nothing has been written for a while that would have.

        Raises:
            StoreError: If the store cannot be read or written.
        """
        await self._run(self._sweep)

    def close(self) -> None:
        """Wait for nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        try:
            async with asyncio.timeout(_PATIENCE):
                return await future
        except TimeoutError:
            raise StoreError(f"the store for requests and pictures did not answer within {_PATIENCE:g} s") from None

    def _put(self, folder: str, name: str, entry: Entry) -> None:
        path = self._seal.path(folder, name)
        file = self._seal.closed(path, entry)
        if len(file) > self.room:
            raise TooLarge
        with self._lock:
            self._make_room(len(file))
            self._used += len(file)
            self._since += len(file)
        self._files.put(path, file)

    def _get(self, folder: str, name: str) -> Entry | None:
        return self._opened(self._seal.path(folder, name))

    def _opened(self, path: str) -> Entry | None:
        file = self._files.get(path)
        if file is None:
            return None
        try:
            entry = self._seal.opened(path, file)
        except SealError as error:
            _log.warning("the store's file %s is not taken: %s", path, error)
            return None
        return entry if entry.facts["written"] > time.time() - self._seconds else None

    def _wishes(self, names: list[str]) -> dict[str, str]:
        there = {each.path for each in self._files.listed(CANCELS)}
        wishes = {}
        for name in names:
            path = self._seal.path(CANCELS, name)
            if path not in there:
                continue
            entry = self._get(CANCELS, name)
            self._files.remove(path)
            if entry is not None:
                wishes[name] = str(entry.facts.get("run"))
        return wishes

    def _currents(self, seconds: float) -> list[Entry]:
        since = time.time() - seconds
        found = (self._opened(each.path) for each in self._files.listed(CURRENTS) if each.written > since)
        return [each for each in found if each is not None]  # it may have been removed since it was listed

    def _sweep(self) -> None:
        with self._lock:
            self._make_room(0)

    def _make_room(self, size: int) -> None:
        """Remove what is too old, and the oldest beyond the room; under the lock."""
        rested = time.monotonic() < self._looked + _SWEEP
        alone = not self.is_shared or self._since <= self.room // _SHARE
        if rested and alone and self._used + size <= self.room:
            return
        files = [each for folder in _FOLDERS for each in self._files.listed(folder)]
        files.sort(key=lambda each: each.written)
        self._used, before = sum(each.size for each in files), time.time() - self._seconds
        for each in files:
            if each.written >= before and self._used + size <= self.room:
                break
            self._remove(each)
        for folder in _FOLDERS:
            for each in self._files.abandoned(folder, _PATIENCE * 3):
                self._files.remove(each.path)
        self._since, self._looked = 0, time.monotonic()

    def _remove(self, file: StoredFile) -> None:
        self._files.remove(file.path)
        self._used -= file.size
