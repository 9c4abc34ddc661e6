"""Kills at random moments: the server, its worker, its folder for temporary files.

Each trial starts a real server, in a place for temporary files that all trials share, and draws one picture, which
must be the one that the first of them drew before anything happened: so each trial also tells what the one before has
left behind.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.fuzzers.tally import Tally
from tests.references.servers import SLOW, START_SECONDS, STOP_SECONDS, Server

MOMENTS = ("loading", "idle", "drawing", "uploading")
DEEDS = ("server KILL", "server HUP", "server TERM", "server INT", "worker KILL", "folder", "contents")
FIRST = (("drawing", "server KILL"), ("loading", "server KILL"), ("uploading", "folder"), ("drawing", "server HUP"))
"""What is tried first; the rest is drawn from all."""

_PICTURE: dict[str, Any] = {"steps": 2, "seed": 1}
_ANSWER_SECONDS = 120  # of a worker that was started again, on a busy machine
_GONE_SECONDS = 30  # the worker's threads may be in the kernel; on a busy machine


class Loading(Server):
    """A server that is left alone while its worker loads."""

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(AssertionError, FileNotFoundError):
                self.worker()
                return
            time.sleep(0.02)
        raise AssertionError(f"the server has no worker:\n{self.text()[-4000:]}")


def fuzz(count: int, seed: int = 0) -> Tally:
    """Try kills.

    Args:
        count: Trials; one server more is started, to see what the last one has left.
        seed: Of moments and deeds.
    """
    chance = random.Random(seed)
    pairs = [pair for pair in itertools.product(MOMENTS, DEEDS) if pair not in FIRST]
    chance.shuffle(pairs)
    tally = Tally()
    pictures = Pictures()
    base = Path(tempfile.mkdtemp(prefix="mz-kills-"))  # short: sockets go below it
    try:
        for moment, deed in itertools.islice(itertools.cycle([*FIRST, *pairs]), count):
            wait = chance.uniform(0, 3 if moment == "loading" else 1)
            said = _trial(base, moment, deed, wait, pictures)
            wrong = [f"{moment}, {deed}, after {wait:.2f} s: {each}" for each in said]
            tally += Tally(tried=1, right=int(not said), wrong=wrong)
        with _served(Server, base) as server:
            tally.wrong += pictures.check(server)
        left = [path.name for path in base.iterdir() if not path.name.startswith("torchinductor")]  # torch's cache
        tally.wrong += [f"left behind in the end: {name}" for name in left]
    finally:
        shutil.rmtree(base)
    return tally


class Pictures:
    """The same picture from every server."""

    def __init__(self) -> None:
        self._first: object = None

    def check(self, server: Server) -> list[str]:
        """Draw it, and say what is wrong about it."""
        answer = server.draw(**_PICTURE)
        if answer.status_code != 200:
            return [f"no picture: {answer.status_code} {answer.text[:200]}"]
        self._first = self._first or answer.json()["data"]
        return [] if answer.json()["data"] == self._first else ["another picture"]


def _trial(base: Path, moment: str, deed: str, wait: float, pictures: Pictures) -> list[str]:
    """Start a server, do something to it, and say what was wrong about what followed."""
    said: list[str] = []
    with _served(Loading if moment == "loading" else Server, base) as server, ThreadPoolExecutor(1) as pool:
        folders = list(base.glob("max-zimage-server-*"))
        if len(folders) != 1:
            said.append(f"folders of servers: {folders}")
        if moment != "loading":
            said += pictures.check(server)
        busy = _busy(server, pool, moment)
        time.sleep(wait)
        if deed.startswith("server"):
            number = signal.Signals[f"SIG{deed.split()[1]}"]
            server.process.send_signal(number)
            said += _ended(server, -number if number == signal.SIGKILL else 0)
        else:
            _harm(server, folders[0], deed)
            if (moment, deed) == ("loading", "worker KILL"):
                said += _ended(server, 1)  # a model that cannot be loaded is not tried again
            else:
                if moment == "drawing" and deed != "worker KILL":
                    server.client.delete("/v1/requests/drawn")  # half a minute, for which nobody waits
                said += _goes_on(server, pictures)
        if busy is not None:
            said += _answered(busy, moment, deed)
    return said


@contextmanager
def _served(kind: type[Server], base: Path) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--restart", "--shutdown-seconds", "5"]
        with kind(Path(folder), flags, environment={"TMPDIR": str(base)}) as server:
            yield server


def _busy(server: Server, pool: ThreadPoolExecutor, moment: str) -> Future[httpx.Response] | None:
    """A request that is in the midst of something, or none."""
    if moment == "drawing":
        asked = pool.submit(server.draw, headers={"X-Request-ID": "drawn"}, **SLOW)
        server.wait_for_status("drawn", "running")
        return asked
    if moment == "uploading":
        return pool.submit(server.client.post, "/v1/images/edits", **_form(slow=True))
    return None


def _form(*, slow: bool) -> dict[str, Any]:
    """An edit whose file is larger than what Starlette keeps in memory by itself; slowly, in pieces."""
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (688, 704, 3), np.uint8)
    Image.fromarray(noise).save(content, format="PNG", compress_level=0)
    fields = {"prompt": "x", "size": "128x128", "resize": "true", "steps": "1"}
    request = httpx.Request("POST", "http://x", files={"image": ("x.png", content.getvalue())}, data=fields)
    body = request.read()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 2**16):
            yield body[start : start + 2**16]
            time.sleep(0.1)

    headers = {name: request.headers[name] for name in ("Content-Type", "Content-Length")}
    return {"content": pieces() if slow else body, "headers": headers}


def _harm(server: Server, folder: Path, deed: str) -> None:
    if deed == "worker KILL":
        os.kill(server.worker(), signal.SIGKILL)
    elif deed == "folder":
        shutil.rmtree(folder, ignore_errors=True)
    else:
        for each in folder.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)


def _goes_on(server: Server, pictures: Pictures) -> list[str]:
    """A server goes on, takes uploads, and can start another worker."""
    said: list[str] = []
    Server.wait_until_ready(server)
    upload = server.client.post("/v1/images/edits", **_form(slow=False))
    if upload.status_code != 200:
        said.append(f"an upload: {upload.status_code} {upload.text[:200]}")
    os.kill(server.worker(), signal.SIGKILL)
    time.sleep(1.5)  # until the server knows
    said += pictures.check(server)
    server.process.send_signal(signal.SIGTERM)
    return said + _ended(server, 0)


def _ended(server: Server, expected: int) -> list[str]:
    """A server ends with all that belongs to it, and its port is free again."""
    said: list[str] = []
    if (status := server.process.wait(STOP_SECONDS)) != expected:
        said.append(f"exit status {status}")
    deadline = time.monotonic() + _GONE_SECONDS
    while server.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    if left := server.processes():
        said.append(f"processes left: {left}")
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", server.port)):
        return said
    return [*said, "the port is taken"]


def _answered(busy: Future[httpx.Response], moment: str, deed: str) -> list[str]:
    """What became of the request that was in the midst of something: pictures, or a reason."""
    by_signal = deed.startswith("server")
    try:
        answer = busy.result(_ANSWER_SECONDS)
    except httpx.TransportError as error:  # who uploads slowly is not waited for
        return [] if by_signal and (deed == "server KILL" or moment == "uploading") else [f"its request: {error!r}"]
    except TimeoutError:
        return ["its request hangs"]
    allowed = (200, 503) if by_signal else (200, 502) if deed == "worker KILL" else (200, 499)
    if answer.status_code not in allowed:
        return [f"its request: {answer.status_code} {answer.text[:200]}"]
    return []
