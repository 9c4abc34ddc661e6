"""Entries of a store, sealed with the server's key.

So what is damaged, was written for another place or by somebody with another key is told from what this server wrote,
or one with the same key.

Reference: RFC 2104 (HMAC), RFC 7914 (scrypt).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

_MAGIC = b"max_zimage state 1\n"
_SALT = b"max_zimage state store"


class SealError(Exception):
    """An entry that this server has not written, nor one with the same key."""


@dataclass(frozen=True)
class Entry:
    """What one file holds.

    Attributes:
        facts: What JSON can say.
        content: Bytes.
    """

    facts: dict[str, Any]
    content: bytes = b""


class Seal:
    """Names of files, and their seals.

    Args:
        api_key: The server's. Servers without one have a seal that everybody can make: it finds damage, no malice.
    """

    def __init__(self, api_key: str | None) -> None:
        # Slow on purpose: whoever can read the files must not find a short key by trying.
        self._key = hashlib.scrypt((api_key or "").encode(), salt=_SALT, n=2**14, r=8, p=1, dklen=32)

    def path(self, folder: str, name: str) -> str:
        """Where an entry lies: without the key nobody can tell from its file which one it is.

        Args:
            folder: Of its kind.
            name: By which it is known.
        """
        return f"{folder}/{hmac.new(self._key, f'{folder}/{name}'.encode(), 'sha256').hexdigest()[:40]}"

    def closed(self, path: str, entry: Entry) -> bytes:
        """An entry as a file.

        Args:
            path: Where it will lie; it is good for no other place.
            entry: What it holds.
        """
        body = json.dumps(entry.facts).encode() + b"\n" + entry.content
        return _MAGIC + self._sum(path, body) + b"\n" + body

    def opened(self, path: str, file: bytes) -> Entry:
        """What a file holds.

        Raises:
            SealError: If it was not closed with this key for this place, or is not all there.
        """
        rest = file.removeprefix(_MAGIC)
        seal, _, body = rest.partition(b"\n")
        if len(rest) == len(file) or not hmac.compare_digest(seal, self._sum(path, body)):
            raise SealError("it is damaged, or comes from elsewhere")
        facts, _, content = body.partition(b"\n")
        return Entry(json.loads(facts), content)

    def _sum(self, path: str, body: bytes) -> bytes:
        return hmac.new(self._key, path.encode() + b"\n" + body, "sha256").hexdigest().encode()
