"""Connections of a server: how many there are, and how long a client may take over its own part.

A request has to arrive, and an answer has to be taken, within a time that grows with what has come or gone: who sends
or reads a byte now and then is cut off, a large picture over a slow line is not. What the server does in between, which
can take minutes, is not limited here. When there are too many connections, those that the server waits for give way to
new ones, the oldest first, so that clients which only hold connections do not keep out those that ask for something.

uvicorn limits neither: its timeout is for the pause between two requests.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from max_zimage.serving.errors import ApiError
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.settings import ConnectionLimits

REFUSAL = "refusal"
"""Where a request's state has the `ApiError` that ends it while its body arrives."""

BACKLOG = 256
"""Connections that the system may hold before the server takes them, which it does in one go."""

TOLD = 128
"""Connections beyond the limit that are told to end and may still read why."""

_RATE = 64 * 1024  # bytes that earn a client another second
_TICK = 0.5  # seconds between two looks at all connections
_LINGER = 5.0  # seconds in which a client can read why its connection ends


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol within limits, which `watch` looks after.

    Args:
        limits: Of the server.
        metrics: Counts those who are refused before there is a request.
        **uvicorn: What `H11Protocol` takes.
    """

    def __init__(self, *, limits: ConnectionLimits, metrics: Metrics, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits, self._metrics = limits, metrics
        self._since = time.monotonic()  # when the client's turn began
        self._arriving = True  # whether it is its turn with a request that is not all there
        self._received = 0  # bytes of it
        self._stuck: tuple[float, int] | None = None  # since when so many bytes have not been taken
        self._ending: float | None = None  # since when the connection is refused

    @property
    def gives_way(self) -> bool:
        """Whether the server waits for this client, and not the other way round."""
        return self._ending is None and (self._arriving or self._idle)

    @property
    def _idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, and make room for it if need be."""
        super().connection_made(transport)
        if len(self.connections) <= self._limits.connections:
            return
        others = [cast(LimitedProtocol, each) for each in self.connections if each is not self]
        told = [each for each in others if each._ending is not None]
        if len(told) >= TOLD:
            min(told, key=lambda each: each._ending or 0.0).transport.abort()
        if len(others) - len(told) < self._limits.connections:
            return
        error = ApiError(
            503,
            "too_many_connections",
            f"this server takes {self._limits.connections} connections at a time; try again later",
            headers={"Retry-After": "1", "Connection": "close"},
        )
        yielding = [each for each in others if each.gives_way]
        chosen = min(yielding, key=lambda each: (each._arriving, each._since), default=self)
        chosen._refuse(error, told=chosen._arriving)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self._ending is not None and self._idle:
            return
        if not self._arriving:
            self._since, self._received = time.monotonic(), 0
        self._received += len(data)
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """Go on with the next request, of which a part may be there."""
        super().on_response_complete()
        self._note()

    def shutdown(self) -> None:
        """End at the server's end: an answer is still given, a request that is not all there is not waited for."""
        if self._arriving:
            message = "the server is being shut down; ask another one"
            self._refuse(
                ApiError(503, "shutting_down", message, headers={"Connection": "close"}), told=self._received > 0
            )
        else:
            super().shutdown()

    def check(self, now: float) -> None:
        """End what takes too long.

        Args:
            now: Of `time.monotonic`.
        """
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            if self._stuck is None or unsent > self._stuck[1]:
                self._stuck = now, unsent
            begin, size = self._stuck
            if now > begin + self._limits.write_seconds + (size - unsent) / _RATE:
                self.transport.abort()
            return
        self._stuck = None
        if self._ending is not None:
            if now > self._ending + _LINGER:
                self.transport.abort()
        elif self._arriving and now > self._since + self._limits.read_seconds + self._received / _RATE:
            message = (
                f"the request did not arrive within {self._limits.read_seconds:g} s, "
                f"and one more for each {_RATE} bytes of it; its first {self._received} did"
            )
            self._refuse(
                ApiError(408, "read_timeout", message, headers={"Connection": "close"}), told=self._received > 0
            )

    def _note(self) -> None:
        """Find out whose turn it is."""
        state = self.conn.their_state.__name__  # of h11, whose states are classes
        arriving = state == "SEND_BODY"
        if state == "IDLE":
            arriving = self.cycle is None or bool(self.conn.trailing_data[0])
        if arriving != self._arriving:
            self._since = time.monotonic()
            if arriving:
                self._received = len(self.conn.trailing_data[0])
        self._arriving = arriving

    def _refuse(self, error: ApiError, *, told: bool) -> None:
        """End the connection, with an answer where one is due and can still be given."""
        self._ending = time.monotonic()
        if not self._idle and not self.cycle.response_started:
            self.scope["state"][REFUSAL] = error  # the gate answers
            self.cycle.message_event.set()
        elif told and self._idle and self.conn.our_state.__name__ == "IDLE":
            self._metrics.rejections.labels(error.code).inc()
            self.transport.write(_raw(error))
            if self.transport.can_write_eof():
                self.transport.write_eof()
        else:
            self.transport.close()


def _raw(error: ApiError) -> bytes:
    """An answer where no request can be read."""
    body = json.dumps(error.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {error.status} {STATUS_PHRASES[error.status].decode()}\r\n{lines}\r\n".encode() + body


async def watch(connections: Iterable[Any]) -> None:
    """Look after the connections of a server, until cancelled.

    Args:
        connections: uvicorn's set of them.
    """
    while True:
        await asyncio.sleep(_TICK)
        now = time.monotonic()
        for each in list(connections):
            each.check(now)
