"""How long a client may take over its request and its answer, and how many connections there may be: real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from max_zimage.serving.http.callers import Callers
from max_zimage.serving.http.connections import LimitedProtocol, watch
from max_zimage.serving.http.middleware import AccessMiddleware
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.settings import ConnectionLimits

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LARGE = 64 * 2**20
PATIENCE = 60  # seconds, on a busy machine


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Count a body; on /slow take two seconds for the answer, on /large answer with much."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        size, more = size + len(message["body"]), message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(2)
    body = bytes(LARGE) if scope["path"] == "/large" else str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Running:
    """A server of `app` within limits.

    Attributes:
        port: Where it listens.
        metrics: Its figures.
        server: uvicorn's.
    """

    def __init__(self, **limits: Any) -> None:
        self.metrics = Metrics()
        callers = Callers.of("127.0.0.1", (), ())
        self.gate = AccessMiddleware(app, callers=callers, api_key=None, body_bytes=2 * LARGE, metrics=self.metrics)
        protocol: Any = functools.partial(LimitedProtocol, limits=ConnectionLimits(**limits), metrics=self.metrics)
        self.server = uvicorn.Server(
            uvicorn.Config(self.gate, port=0, http=protocol, ws="none", lifespan="off", log_config=None)
        )

    async def serve(self) -> None:
        looks = asyncio.create_task(watch(self.server.server_state.connections))
        await self.server.serve()
        assert not looks.done(), looks.exception()
        looks.cancel()

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(sent)
        return connection

    @property
    def port(self) -> int:
        port: int = self.server.servers[0].sockets[0].getsockname()[1]
        return port

    def get(self, path: str = "/") -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE)


@contextmanager
def running(**limits: Any) -> Iterator[Running]:
    made = Running(**limits)
    thread = threading.Thread(target=lambda: asyncio.run(made.serve()))
    thread.start()
    try:
        while not made.server.started:
            time.sleep(0.01)
        yield made
    finally:
        made.server.should_exit = made.server.force_exit = True
        thread.join()


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, which it may do with bytes on their way to it."""
    taken = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            taken += piece
    return taken


def told(answer: bytes) -> tuple[int, str]:
    """Status and code of an error."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


LATE: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "line": (b"POST / HTT", b""),
    "headers": (b"POST / HTTP/1.1\r\n", b"X: y\r\n"),
    "body": (HEAD + b"Content-Length: 1000\r\n\r\n", b""),
    "bytes": (HEAD + b"Content-Length: 1000\r\n\r\n", b"x"),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "get": (b"GET / HTTP/1.1\r\nHost: x", b""),
    "second": (HEAD + b"Content-Length: 2\r\n\r\n[]" + HEAD, b"X: y\r\n"),
}
"""Requests that do not arrive: what is sent at once, and then again and again."""


def waited(server: Running, sent: bytes, drop: bytes) -> tuple[bytes, float]:
    """What comes of a request that does not arrive, and after how many seconds."""
    begin = time.monotonic()
    connection = server.connect(sent)
    done = threading.Event()

    def trickle() -> None:
        while drop and not done.wait(0.1):
            try:
                connection.sendall(drop)
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    answer = rest(connection)
    seconds = time.monotonic() - begin
    done.set()
    thread.join()
    return answer, seconds


@pytest.fixture(scope="module")
def late() -> dict[str, tuple[bytes, float]]:
    """All of them at a time: each takes as long as it may."""
    with running(read_seconds=1.0) as server, ThreadPoolExecutor(len(LATE)) as pool:
        found = dict(zip(LATE, pool.map(lambda each: waited(server, *each), LATE.values()), strict=True))
        assert server.get().status_code == 200
    return found


@pytest.mark.parametrize("name", LATE)
def test_a_request_has_to_arrive(late: dict[str, tuple[bytes, float]], name: str) -> None:
    answer, seconds = late[name]
    assert 1.0 <= seconds < 20
    if name == "nothing":
        assert answer == b""
    else:
        answer = answer.partition(b"1\r\n2\r\n0\r\n\r\n")[2] or answer  # the first of two, where there is one
        assert told(answer) == (408, "read_timeout")


def test_a_large_body_over_a_slow_line_arrives() -> None:
    with running(read_seconds=1.0) as server:
        connection = server.connect(HEAD + b"Content-Length: 786432\r\nConnection: close\r\n\r\n")
        begin = time.monotonic()
        for _ in range(6):
            connection.sendall(bytes(131072))
            time.sleep(0.5)
        assert time.monotonic() - begin >= 3  # three times what a body of nothing may take
        assert b"786432" in rest(connection)


def test_an_answer_may_take_its_time_and_a_pause_too() -> None:
    with running(read_seconds=0.5, write_seconds=0.5) as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=PATIENCE) as client:
            first = client.get("/slow", headers={"X": "y"})
            (before,) = server.server.server_state.connections
            time.sleep(1.5)
            second = client.get("/")
            assert server.server.server_state.connections == {before}
        assert (first.status_code, first.text, second.status_code) == (200, "0", 200)


def test_an_answer_has_to_be_taken() -> None:
    with running(write_seconds=1.0) as server:
        idle = server.connect(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        closing = server.connect(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        steady = server.connect(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        taken = 0
        while piece := steady.recv(2**20):
            taken += len(piece)
            time.sleep(0.03)  # two seconds in all, and more for those who hold a lock
        assert taken > LARGE
        steady.close()
        deadline = time.monotonic() + PATIENCE
        while server.server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.server.server_state.connections
        for connection in (idle, closing):
            connection.close()


def test_those_who_only_hold_connections_give_way() -> None:
    with running(connections=20) as server:
        hanging = [server.connect(HEAD + b"Content-Length: 1000\r\n\r\n") for _ in range(60)]
        hanging += [server.connect(b"") for _ in range(20)]
        begin = time.monotonic()
        assert server.get().status_code == 200
        assert time.monotonic() - begin < 10  # and not the thirty seconds that a request may take to arrive
        assert told(rest(hanging[0])) == (503, "too_many_connections")
        deadline = time.monotonic() + PATIENCE
        while len(server.server.server_state.connections) > 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(server.server.server_state.connections) <= 20
        for connection in hanging:
            connection.close()


def test_where_all_are_served_the_next_is_refused_at_once() -> None:
    with running(connections=4) as server:
        asked = [
            server.connect(b"GET /slow HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") for _ in range(4)
        ]
        time.sleep(0.5)
        refused = server.get()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "too_many_connections"
        assert all(rest(connection).startswith(b"HTTP/1.1 200") for connection in asked)
        assert server.get().status_code == 200
        assert b'zimage_rejections_total{code="too_many_connections"} 1.0' in server.metrics.text()


def test_an_early_answer_does_not_wait_for_the_body() -> None:
    with running(read_seconds=1.0) as server:
        connection = server.connect(HEAD.replace(b"localhost", b"evil.example") + b"Content-Length: 1000\r\n\r\nx")
        answer = rest(connection)
        assert answer.count(b"HTTP/1.1") == 1
        assert told(answer)[1] == "unknown_host"


def test_bodies_on_their_way_have_a_bound_together() -> None:
    """Sixteen of the largest size; what has arrived, or was given up, does not count."""
    with running() as server:
        server.gate._limit = 2**20
        head = HEAD + b"Content-Length: 1048576\r\n\r\n"
        hanging = [server.connect(head + bytes(2**20 - 1)) for _ in range(16)]
        deadline = time.monotonic() + PATIENCE
        while server.gate._arriving < 16 * (2**20 - 1) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert told(rest(server.connect(head + bytes(2**20 - 1)))) == (503, "too_many_bodies")
        hanging[0].sendall(b"x")
        answer = b""
        while b"1048576" not in answer:
            answer += (piece := hanging[0].recv(1000))
            assert piece
        for connection in hanging:
            connection.close()
        while server.gate._arriving and time.monotonic() < deadline:
            time.sleep(0.01)
        assert httpx.post(f"http://127.0.0.1:{server.port}/", content=bytes(2**20)).text == str(2**20)


def test_the_end_of_the_server_does_not_wait_for_requests_but_for_answers() -> None:
    with running() as server:
        arriving = server.connect(HEAD + b"Content-Length: 1000\r\n\r\nx")
        nothing = server.connect()
        asked = server.connect(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + PATIENCE
        while len(server.server.server_state.tasks) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        server.server.should_exit = True
        assert told(rest(arriving)) == (503, "shutting_down")
        assert rest(nothing) == b""
        assert rest(asked).startswith(b"HTTP/1.1 200")
