"""What stands between Ray's proxy and the replicas: reads a request, sends it where its shape is, passes on the answer.

It holds no model. A request comes whole before a replica is chosen, so that one which asks for the same as others can
meet them, and one whose replica dies can be sent to another.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import Message, Receive, Scope, Send

from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.hanging_up import HungUp, unless_gone
from max_zimage.serving.ray_serve.call import NOT_SERVING, Call, scope_to_send, with_header
from max_zimage.serving.ray_serve.door import Door
from max_zimage.serving.ray_serve.encoding import Encoding
from max_zimage.serving.ray_serve.figures import merged
from max_zimage.serving.ray_serve.shapes import has_seed, read, shape_of

_log = logging.getLogger("max_zimage.serving")
_TRIES = 3
_PAUSE = 0.5  # seconds before another try: within them the router hears which replicas serve
_PROBE = 2.0  # seconds in which somebody has to say that pictures are drawn
GRACE = 30.0
"""Seconds above those that a replica gives a request, in which the gateway hears what became of it."""
_PROBES = ("/health", "/readyz")


class NotServing(Exception):
    """The replica does nothing for this request."""


@dataclass
class Answered:
    """How far an answer has gone.

    Attributes:
        begun: Whether its status has.
        events: Whether it is a stream of events.
    """

    begun: bool = False
    events: bool = False


class Gateway:
    """The ASGI application.

    Args:
        replicas: The servers.
        door: Who may come in, and how large.
        encoding: Has prompts encoded before; None where replicas do it.
        seconds: That a server gives a request.
    """

    def __init__(self, replicas: DeploymentHandle[Any], door: Door, encoding: Encoding | None, seconds: float) -> None:
        self._replicas, self._door, self._encoding, self._seconds = replicas, door, encoding, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        answered = Answered()
        try:
            self._door.check(scope)
            async with self._door.body(receive) as body:
                await unless_gone(asyncio.create_task(self._served(scope, body, answered, send)), receive)
        except HungUp:
            pass  # nobody is told
        except ApiError as error:
            await _end(error, scope["path"], answered, send)

    async def _served(self, scope: Scope, body: bytes, answered: Answered, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/livez" and method in ("GET", "HEAD"):
            await _respond(200, b'{"status":"alive"}', {}, send)
        elif path in _PROBES:
            await self._probed(Call(scope_to_send(scope), body), answered, send)
        elif path == "/metrics" and method == "GET":
            await self._figures(Call(scope_to_send(scope), body), send)
        else:
            await self._relayed(await self._call(scope, body), answered, send)

    async def _call(self, scope: Scope, body: bytes) -> Call:
        """The request as a replica gets it, its prompt encoded where others do that."""
        sent = scope_to_send(scope)
        given = await asyncio.to_thread(read, body) if body else None
        if given is not None and self._encoding is not None and self._encoding.wants(scope):
            encoded = await self._encoding.encoded(given, body)
            if len(encoded) <= self._door.body_bytes:  # features are larger than texts: the replica would refuse it
                body = encoded
                sent = with_header(sent, b"content-length", str(len(body)).encode())
        return Call(sent, body, shape_of(given), has_seed(given))

    async def _relayed(self, call: Call, answered: Answered, send: Send) -> None:
        """Pass on the answer of a replica, or of another where the first one cannot and nothing is lost by it."""
        begin = time.monotonic()
        for attempt in range(1, _TRIES + 1):
            try:
                left = begin + self._seconds + GRACE - time.monotonic()
                await self._passed_on(call, answered, send, left)
                return
            except NotServing:  # nothing is known there of the request: it keeps its id
                error = _unavailable("no_replica", "the replica that was asked does not serve; try again later")
                again, name = True, None
            except RayActorError:
                message = (
                    "the replica that had this request died; what it drew is lost, and the request may be sent again"
                )
                error, again = ApiError(502, "replica_died", message), call.only_reads or call.is_seeded
                name = uuid.uuid4().hex  # under its own id the other replicas would take it for the one that is lost
            except BackPressureError:
                raise _unavailable("fleet_full", "all replicas have as much as they may; try again later") from None
            except DeploymentUnavailableError:
                raise _unavailable("no_replica", "no replica can be started; the fleet's log says why") from None
            except TimeoutError:
                raise _unavailable("no_replica", "no replica took this request in time; try again later") from None
            if answered.begun or not again or attempt == _TRIES:
                raise error
            _log.warning("%s; asking another one", error)
            await asyncio.sleep(_PAUSE)
            if name is not None:
                call = replace(call, scope=with_header(call.scope, b"x-request-id", name.encode()))

    async def _passed_on(
        self, call: Call, answered: Answered, send: Send, seconds: float, *, but: int | None = None
    ) -> None:
        """Send what a replica says, unless it is an answer of one status."""
        async with aclosing(self._messages(call, seconds)) as messages:
            async for message in messages:
                if message["type"] == NOT_SERVING or message.get("status", 0) == but:
                    raise NotServing
                if message["type"] == "http.response.start":
                    message, answered.begun = _without_id(message), True
                    kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
                    answered.events = any(kind.startswith(b"text/event-stream") for kind in kinds)
                await send(message)

    async def _messages(self, call: Call, seconds: float) -> AsyncGenerator[Message, None]:
        """What a replica says; to leave early is to hang up."""
        response: Any = self._replicas.options(stream=True).answer.remote(call)
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                first = await anext(response)
            yield first
            async for message in response:
                yield message
        finally:
            response.cancel()

    async def _probed(self, call: Call, answered: Answered, send: Send) -> None:
        """Say whether somebody draws: one replica is asked, and all of them where that one does not."""
        try:
            await self._passed_on(call, answered, send, _PROBE, but=503)
        except (TimeoutError, NotServing, RayActorError, BackPressureError, DeploymentUnavailableError):
            if not answered.begun:
                page = await self._drawing(call)
                await _respond(200 if page else 503, page or b'{"status":"loading"}', {}, send)

    async def _drawing(self, call: Call) -> bytes | None:
        """What a replica says that draws; None if there is none."""
        try:
            asked = self._replicas.broadcast("whole", call)
            pages = await asked.results_async(timeout_s=_PROBE, return_exceptions=True)
        except (RayActorError, DeploymentUnavailableError, TimeoutError):
            return None
        return next((page[2] for page in pages if isinstance(page, tuple) and page[1] == 200), None)

    async def _figures(self, call: Call, send: Send) -> None:
        """The figures of all replicas on one page, each with its replica's name."""
        try:
            pages = await self._replicas.broadcast("whole", call).results_async(timeout_s=_PROBE)
        except (RayActorError, DeploymentUnavailableError, TimeoutError):
            raise _unavailable("no_replica", "not all replicas told their figures; try again later") from None
        refused = next((page for page in pages if page[1] != 200), None)
        if refused is not None:
            await _respond(refused[1], refused[2], {}, send)
            return
        text = await asyncio.to_thread(merged, {name: body.decode() for name, _, body in pages})
        await _respond(200, text, {"content-type": "text/plain; version=0.0.4; charset=utf-8"}, send)


def _unavailable(code: str, message: str) -> ApiError:
    return ApiError(503, code, message, headers={"Retry-After": "2"})


def _without_id(message: Message) -> Message:
    """Ray's proxy names the request by itself, by the id that it was sent with."""
    kept = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
    return {**message, "headers": kept}


async def _end(error: ApiError, path: str, answered: Answered, send: Send) -> None:
    """Say what went wrong: as an answer, as the last event of a stream, or by an answer that breaks off."""
    if not answered.begun:
        await _respond(error.status, json.dumps(error.body(path)).encode(), error.headers, send)
    elif answered.events:
        event = f"event: error\ndata: {json.dumps({'type': 'error', **error.body()})}\n\n".encode()
        await send({"type": "http.response.body", "body": event})
    else:
        raise error


async def _respond(status: int, body: bytes, headers: Mapping[str, str], send: Send) -> None:
    given = {"content-type": "application/json", **headers, "content-length": str(len(body))}
    listed = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
