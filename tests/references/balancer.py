"""What stands around the replicas of a server: a proxy that takes turns, and a collector of spans."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.references.servers import free_port

PUBLIC = "pictures.example.test"
"""The name by which clients call the proxy, as it tells the replicas."""

_HOPS = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization", "host"}


class Balancer:
    """A proxy in a thread that sends each request to the next replica that can be reached.

    Args:
        targets: Base URLs of the replicas.
    """

    def __init__(self, targets: list[str]) -> None:
        self._targets, self._turn = targets, 0
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Balancer:
        methods = ["GET", "POST", "DELETE", "HEAD", "OPTIONS"]
        app = Starlette(routes=[Route("/{path:path}", self._pass_on, methods=methods)])
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    async def _pass_on(self, request: Request) -> Response:
        body = await request.body()
        kept = [(name, value) for name, value in request.headers.items() if name not in _HOPS]
        said = {"X-Forwarded-Host": PUBLIC, "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
        for _ in self._targets:
            target = self._targets[self._turn % len(self._targets)]
            self._turn += 1
            client = httpx.AsyncClient(timeout=None, trust_env=False)
            url = f"{target}{request.url.path}"
            made = client.build_request(request.method, url, headers=[*kept, *said.items()], content=body)
            try:
                answer = await _unless_gone(request, client.send(made, stream=True))
            except httpx.ConnectError:
                await client.aclose()
                continue
            if answer is None:
                await client.aclose()
                return Response(status_code=499)
            headers = {name: value for name, value in answer.headers.items() if name not in _HOPS}
            return StreamingResponse(_body(client, answer), answer.status_code, headers | {"X-Served-By": target})
        return PlainTextResponse("no replica", 502)


async def _unless_gone(request: Request, answering: Any) -> httpx.Response | None:
    """The replica's answer; None if the client hung up before, which the replica is told by hanging up."""
    work = asyncio.ensure_future(answering)
    while not work.done():
        await asyncio.wait((work,), timeout=0.1)
        if not work.done() and await request.is_disconnected():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            return None
    found: httpx.Response = work.result()
    return found


async def _body(client: httpx.AsyncClient, answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()
        await client.aclose()


@dataclass(frozen=True)
class CollectedSpan:
    """One span as the collector has it.

    Attributes:
        name: Its.
        trace: Its trace, in hexadecimal.
        span: Its own id.
        parent: Of the span it belongs to; empty for none.
        begin: Nanoseconds of Unix time.
        end: Likewise.
        attributes: Its.
        resource: Of the process.
        failed: Whether its status is an error.
    """

    name: str
    trace: str
    span: str
    parent: str
    begin: int
    end: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    failed: bool


class Collector:
    """Takes spans by OTLP over HTTP, in a thread."""

    def __init__(self) -> None:
        self.spans: list[CollectedSpan] = []
        self.raw = b""

    def __enter__(self) -> Collector:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    collector._take(content)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of_trace(self, trace: str, count: int) -> dict[str, CollectedSpan]:
        """The spans of a trace by their names, once there are so many."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = [each for each in self.spans if each.trace == trace]
            if len(found) >= count:
                return {each.name: each for each in found}
            time.sleep(0.05)
        raise AssertionError(f"{[each.name for each in self.spans if each.trace == trace]} are not {count} spans")

    def _take(self, content: bytes) -> None:
        self.raw += content
        for group in ExportTraceServiceRequest.FromString(content).resource_spans:
            resource = _values(group.resource.attributes)
            for each in (span for scope in group.scope_spans for span in scope.spans):
                self.spans.append(
                    CollectedSpan(
                        name=each.name,
                        trace=each.trace_id.hex(),
                        span=each.span_id.hex(),
                        parent=each.parent_span_id.hex(),
                        begin=each.start_time_unix_nano,
                        end=each.end_time_unix_nano,
                        attributes=_values(each.attributes),
                        resource=resource,
                        failed=each.status.code == 2,
                    )
                )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
