"""Pictures that are fetched by URL: kept in memory, the oldest go first when the room is used up."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass

from max_zimage.serving.errors import ApiError


@dataclass(frozen=True)
class Medium:
    """One file."""

    content: bytes
    kind: str


class MediaStore:
    """Files by a name that cannot be guessed.

    Args:
        room: Bytes.
    """

    def __init__(self, room: int) -> None:
        self._room, self._used = room, 0
        self._media: OrderedDict[str, Medium] = OrderedDict()

    def put(self, content: bytes, kind: str) -> str:
        """Keep a file, and return its name.

        Args:
            content: The file.
            kind: Its media type, e.g. "image/png".

        Raises:
            ApiError: 400 if it is larger than the whole room.
        """
        if len(content) > self._room:
            raise ApiError(
                400,
                "limit_exceeded",
                f"response_format: this server keeps {self._room} bytes of pictures for answers by URL, one of this "
                f"request has {len(content)}; use b64_json",
                param="response_format",
            )
        name = secrets.token_urlsafe(24)
        self._media[name] = Medium(content, kind)
        self._used += len(content)
        while self._used > self._room:
            _, oldest = self._media.popitem(last=False)
            self._used -= len(oldest.content)
        return name

    def get(self, name: str) -> Medium:
        """Return a file.

        Raises:
            ApiError: 404 if there is none of that name, or not any more.
        """
        medium = self._media.get(name)
        if medium is None:
            raise ApiError(404, "not_found", "there is no such picture, or it had to make room for newer ones")
        return medium
