"""What proxies say of the client's own connection: believed of those that are named, and of nobody else.

X-Forwarded-For and -Proto are uvicorn's work; X-Forwarded-Host and -Port are added here, from which URLs of pictures
are made and by which callers are checked. Where several proxies have left a name, it is the nearest one's.

Reference: MDN, X-Forwarded-Host; uvicorn middleware/proxy_headers.py.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_PORTS = {"http": "80", "https": "443"}


class ForwardedMiddleware:
    """Puts what trusted proxies say in the place of what the connection says.

    Args:
        app: The rest of the server.
        trusted: Addresses and networks, from `max_zimage.serving.addresses.proxy_network`.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[str]) -> None:
        self._app, self._networks = app, [ipaddress.ip_network(each) for each in trusted]
        self._known: ASGIApp = ProxyHeadersMiddleware(self._named, list(trusted))  # type: ignore[assignment,arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope.get("client") is not None:
            address = _plain(scope["client"][0])
            scope["client"] = (address, scope["client"][1])
            if self._trusts(address):
                await self._known(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:  # a socket of this machine has none
            return False
        return any(parsed in network for network in self._networks)

    async def _named(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take the name by which the client called, now that its scheme is known."""
        said = {name: value for name, value in scope["headers"] if name in (b"x-forwarded-host", b"x-forwarded-port")}
        host, port = (_last(said.get(name, b"")) for name in (b"x-forwarded-host", b"x-forwarded-port"))
        if host:
            if port.isdigit() and port != _PORTS.get(scope["scheme"]) and ":" not in host.rpartition("]")[2]:
                host = f"{host}:{port}"
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*others, (b"host", host.encode("latin-1"))]
        await self._app(scope, receive, send)


def _last(value: bytes) -> str:
    return value.decode("latin-1").rpartition(",")[2].strip()


def _plain(address: str) -> str:
    """An address without its IPv6 clothes."""
    try:
        mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
    except ValueError:
        return address
    return address if mapped is None else str(mapped)
