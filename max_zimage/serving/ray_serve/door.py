"""Who may send the gateway a body, and how large it may be: asked before it is read, and again by the replica."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope

from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.middleware import check_access, too_large

_BODIES = 16  # of the largest size, whose bytes may be here at a time, on their way or until they are answered


class Door:
    """The first checks of a request.

    Args:
        api_key: What clients send; None lets everybody in.
        body_bytes: Of a request's body.

    Attributes:
        body_bytes: The same.
    """

    def __init__(self, api_key: str | None, body_bytes: int) -> None:
        self._key, self.body_bytes = api_key, body_bytes
        self._held = 0

    def check(self, scope: Scope) -> None:
        """Refuse who has no key, and what says that it is too large.

        Raises:
            ApiError: 401 or 413; that too for a body of OPTIONS, which browsers send without a key and without one.
        """
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        key = None if scope["method"] == "OPTIONS" else self._key  # browsers ask without it; replicas know whom to tell
        check_access(scope["path"], headers, key, self.body_bytes)
        if scope["method"] == "OPTIONS" and (
            "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        ):
            raise ApiError(413, "body_too_large", "OPTIONS has no body; leave it out", headers={"Connection": "close"})

    @asynccontextmanager
    async def body(self, receive: Receive) -> AsyncIterator[bytes]:
        """All of a body, to be left when its request has been answered: until then it takes up room.

        Raises:
            ApiError: 413 if it is too large, 503 if too much is here, 499 if the client hangs up.
        """
        parts: list[bytes] = []
        held, more = 0, True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(499, "cancelled", "the client hung up before its request was read")
                part, more = message.get("body", b""), message.get("more_body", False)
                parts.append(part)
                held += len(part)
                self._held += len(part)
                if held > self.body_bytes:
                    raise too_large(held, self.body_bytes)
                if self._held > _BODIES * self.body_bytes:
                    raise ApiError(
                        503,
                        "too_many_bodies",
                        "this gateway has too many large requests that are not answered yet; try again later",
                        headers={"Retry-After": "1"},
                    )
            yield b"".join(parts)
        finally:
            self._held -= held
