"""A request as it goes from the gateway to a replica, in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_SERVING = "max_zimage.not_serving"
"""Type of the one message of a replica that has done nothing for a request: another one may be asked."""

_SENT = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
_ENDS = ("client", "server")
_READING = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        scope: ASGI's, without what belongs to a process.
        body: All of it.
        shape: From `shapes.shape_of`, by which the router chooses.
        is_seeded: Whether the client names a seed, so that the same picture comes of it wherever it is drawn.
    """

    scope: Mapping[str, Any]
    body: bytes
    shape: str = ""
    is_seeded: bool = False

    @property
    def only_reads(self) -> bool:
        """Whether nothing is drawn for it."""
        return self.scope["method"] in _READING


def scope_to_send(scope: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an ASGI scope that another process can use."""
    ends = {name: tuple(scope[name]) if scope.get(name) else None for name in _ENDS}
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    return {name: scope[name] for name in _SENT if name in scope} | ends | {"headers": headers, "extensions": {}}


def with_header(scope: Mapping[str, Any], name: bytes, value: bytes) -> dict[str, Any]:
    """The scope with a header in place of those of its name."""
    others = [(each, given) for each, given in scope["headers"] if each.lower() != name]
    return {**scope, "headers": [*others, (name, value)]}
