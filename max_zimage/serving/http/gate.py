"""What stands before the routes, from the outside: forwarded headers, the request's span, who may come in."""

from __future__ import annotations

from starlette.types import ASGIApp

from max_zimage.serving.http.callers import Callers
from max_zimage.serving.http.forwarded import ForwardedMiddleware
from max_zimage.serving.http.middleware import AccessMiddleware
from max_zimage.serving.http.state import ServerState
from max_zimage.serving.http.traced import TraceMiddleware


def gated(routes: ASGIApp, state: ServerState) -> ASGIApp:
    """The routes behind all of it.

    Args:
        routes: The application.
        state: Of the server.

    Raises:
        OSError: If the host that it listens on is unknown.
    """
    settings = state.settings
    gate: ASGIApp = AccessMiddleware(
        routes,
        callers=Callers.of(settings.host, settings.allow_hosts, settings.cors_origins),
        api_key=settings.api_key,
        body_bytes=settings.limits.body_bytes,
        metrics=state.metrics,
    )
    if state.tracing is not None:
        gate = TraceMiddleware(gate, state.tracing)
    return ForwardedMiddleware(gate, settings.trusted_proxies) if settings.trusted_proxies else gate
