"""The span of each HTTP request, around everything else."""

from __future__ import annotations

from opentelemetry.trace import StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from max_zimage.serving.http.static_files import is_static
from max_zimage.serving.tracing import Tracing, carrier

SPAN, TRACE = "span", "trace"
"""Where a request's state has its span, and what has others belong to it."""

_SILENT = frozenset({"/health", "/livez", "/readyz", "/metrics", "/version"})
"""Asked every few seconds, by machines."""


class TraceMiddleware:
    """Makes a span of each request.

    Args:
        app: The rest of the server.
        tracing: Takes the spans.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in _SILENT or is_static(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        span = self._tracing.begin(scope["method"], headers)
        state = scope.setdefault("state", {})
        state[SPAN], state[TRACE] = span, carrier(span)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_attribute("error.type", str(message["status"]))
                    span.set_status(StatusCode.ERROR)
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            span.set_attributes({"http.request.method": scope["method"], "url.scheme": scope["scheme"]})
            if "request_id" in state:
                span.set_attribute("zimage.request_id", state["request_id"])
            span.end()
