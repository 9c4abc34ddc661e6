"""Pictures by URL, and requests by id, as routes ask the store for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from max_zimage.serving.errors import ApiError
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.store.files import StoreError
from max_zimage.serving.store.state_store import Picture, StateStore, TooLarge

_log = logging.getLogger("max_zimage.serving")


class MediaStore:
    """Pictures by a name that cannot be guessed.

    Args:
        store: Where they are.
        metrics: Counts failures of it.
    """

    def __init__(self, store: StateStore, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics

    async def put(self, content: bytes, kind: str) -> str:
        """Keep a file, and return its name.

        Args:
            content: The file.
            kind: Its media type, e.g. "image/png".

        Raises:
            ApiError: 400 if it is larger than the whole room; 503 if the store cannot be written.
        """
        try:
            with reached(self._metrics):
                return await self._store.put_picture(content, kind)
        except TooLarge:
            raise ApiError(
                400,
                "limit_exceeded",
                f"response_format: this server keeps {self._store.room} bytes of pictures for answers by URL, one of "
                f"this request has {len(content)}; use b64_json",
                param="response_format",
            ) from None

    async def get(self, name: str) -> Picture:
        """Return a file.

        Raises:
            ApiError: 404 if there is none of that name, or not any more; 503 if the store cannot be read.
        """
        with reached(self._metrics):
            picture = await self._store.picture(name)
        if picture is None:
            raise ApiError(
                404, "not_found", "there is no such picture, or its time is over, or it had to make room for newer ones"
            )
        return picture


@contextmanager
def reached(metrics: Metrics) -> Iterator[None]:
    """Answer for a store that cannot be used; where it is, its log says and not the client's answer.

    Raises:
        ApiError: 503.
    """
    try:
        yield
    except StoreError as error:
        metrics.store_errors.inc()
        _log.warning("%s", error)
        message = "the store for requests and pictures by URL cannot be used now; try again later"
        raise ApiError(503, "store_unavailable", message, headers={"Retry-After": "5"}) from error
