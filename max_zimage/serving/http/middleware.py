"""What every request goes through before its route: an id, who asks, the size of its body, a count of the answer."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.callers import Callers, cors_headers, preflight_headers
from max_zimage.serving.http.connections import REFUSAL
from max_zimage.serving.http.static_files import is_static
from max_zimage.serving.metrics import Metrics

_log = logging.getLogger("max_zimage.serving")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OPEN_PATHS = ("/health", "/readyz", "/livez")
_BASIC_PATHS = "/sdapi/"  # whose clients have a name and a password, of which the second one is the key
_BODIES = 16  # of the largest size, whose bytes may be on their way at a time


class AccessMiddleware:
    """Lets requests in, as an ASGI application around the routes.

    Args:
        app: The routes.
        callers: Who may call.
        api_key: What clients send as a bearer token, or as a password on `/sdapi/`; None lets everybody in.
        body_bytes: Of a request's body.
        metrics: Counts answers and rejections.
    """

    def __init__(
        self, app: ASGIApp, *, callers: Callers, api_key: str | None, body_bytes: int, metrics: Metrics
    ) -> None:
        self._app, self._callers, self._metrics = app, callers, metrics
        self._key, self._limit = api_key, body_bytes
        self._arriving = 0  # bytes of bodies that are not all there

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, chosen_id=request_id == given)
        answered: list[int] = []
        page: list[str] = []

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.append(message["status"])
                cors = cors_headers(page[0]) if page else []
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *cors]
            await send(message)

        try:
            origin = self._callers.check(scope["method"], scope["http_version"], scope["headers"])
            if origin is not None:
                page.append(origin)
                if scope["method"] == "OPTIONS" and (allowed := preflight_headers(scope["headers"])):
                    await tell({"type": "http.response.start", "status": 204, "headers": allowed})
                    await tell({"type": "http.response.body", "body": b""})
                    return
            check_access(scope["path"], headers, self._key, self._limit)
            _check_id(given)
            with self._counted(scope, receive) as counted:
                await self._app(scope, counted, tell)
        except ApiError as error:  # from here; those of the routes have been answered there
            await respond(error, self._metrics, tell, scope["path"])
        except Exception:
            _log.exception("request %s failed in the server", request_id)
            if not answered:
                await respond(internal_error(request_id), self._metrics, tell, scope["path"])
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(answered[0] if answered else 499)).inc()

    @contextmanager
    def _counted(self, scope: Scope, receive: Receive) -> Iterator[Receive]:
        """A body in pieces, whose length nobody has announced, is counted as it comes; one that does not come ends."""
        seen = held = 0

        async def counted() -> Message:
            nonlocal seen, held
            message = await receive()
            if REFUSAL in scope["state"]:
                raise scope["state"][REFUSAL]
            size = len(message.get("body", b""))
            seen, held = seen + size, held + size
            self._arriving += size
            if seen > self._limit:
                raise too_large(seen, self._limit)
            if self._arriving > _BODIES * self._limit:
                raise ApiError(
                    503,
                    "too_many_bodies",
                    "too many large requests are on their way to this server; try again later",
                    headers={"Retry-After": "1", "Connection": "close"},
                )
            if not message.get("more_body"):
                self._arriving, held = self._arriving - held, 0
            return message

        try:
            yield counted
        finally:
            self._arriving -= held


def check_access(path: str, headers: Mapping[str, str], key: str | None, limit: int) -> None:
    """Refuse who has no key, and a body that says it is too large, before anything of it is read.

    Args:
        path: Of the route.
        headers: Of the request, by their names in lower case.
        key: That clients have to send; None for none.
        limit: Bytes of a body.

    Raises:
        ApiError: 401 or 413.
    """
    if key is not None and path not in _OPEN_PATHS and not is_static(path):
        with_name = path.startswith(_BASIC_PATHS)
        if not hmac.compare_digest(_token(headers.get("authorization", ""), with_name), key.encode()):
            way = ", or as the password of HTTP's basic authentication" if with_name else ""
            raise ApiError(
                401,
                "invalid_api_key",
                f'this server wants its key, as the header "Authorization: Bearer KEY"{way}',
                headers={"WWW-Authenticate": 'Basic realm="max_zimage"' if with_name else "Bearer"},
            )
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise too_large(int(length), limit)


def too_large(given: int, limit: int) -> ApiError:
    """The refusal of a body.

    Args:
        given: Bytes that it has, or more.
        limit: Bytes that it may have.
    """
    return ApiError(
        413,
        "body_too_large",
        f"a request's body may have {limit} bytes, this one has {given} or more; send smaller images",
        headers={"Connection": "close"},
    )


def _check_id(request_id: str) -> None:
    if request_id and not _ID.fullmatch(request_id):
        raise ApiError(
            400,
            "invalid_value",
            "X-Request-ID: up to 64 letters, digits, - and _ are allowed",
            param="X-Request-ID",
        )


def _token(header: str, with_name: bool) -> bytes:
    """The key that an Authorization header brings; empty for none, which no key is.

    Args:
        header: Its value.
        with_name: Whether basic authentication is taken too, with any name.
    """
    scheme, _, token = header.partition(" ")
    if scheme.lower() == "bearer":
        return token.strip().encode("latin-1")
    if scheme.lower() != "basic" or not with_name:
        return b""
    try:
        return base64.b64decode(token.strip(), validate=True).partition(b":")[2]
    except ValueError:
        return b""


def internal_error(request_id: str) -> ApiError:
    """What a client learns of a fault of ours."""
    return ApiError(500, "internal", f"request {request_id} failed; the server's log says why")


async def respond(error: ApiError, metrics: Metrics, send: Send, path: str = "") -> None:
    """Answer with an error, and count it."""
    metrics.rejections.labels(error.code).inc()
    body = json.dumps(error.body(path)).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
