"""Who may call: by which names the server answers, and pages of which origins may use it.

A browser sends whatever page it shows to any address, and to 127.0.0.1. It says whose page it is (Origin), and by which
name it has found the server (Host), which is the page's own where that name was made to point here.

Reference: the Fetch standard, CORS protocol; RFC 9110, Host.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from max_zimage.serving.errors import ApiError

Header = tuple[bytes, bytes]

_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.%\w-]+\]|[^\s:/?#@\[\]\\,]+)(?::([0-9]{0,5}))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#\s]+)", re.IGNORECASE)
_PORTS = {"http": "80", "https": "443"}
_READING = ("GET", "HEAD", "OPTIONS")
_TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")
_METHODS = b"GET, POST, DELETE"


@dataclass(frozen=True, kw_only=True)
class Callers:
    """Names and origins of one server.

    Attributes:
        names: By which it answers, besides those of the loopback device, in lower case.
        any_address: Whether it answers by any IP address. No name can be made to look like one, and behind a
            translation of addresses a machine does not know its own.
        origins: Whose pages may use it, besides its own.
    """

    names: frozenset[str]
    any_address: bool
    origins: frozenset[str]

    @classmethod
    def of(cls, host: str, allowed: Iterable[str], origins: Iterable[str]) -> Self:
        """Those of a server.

        Args:
            host: What it listens on.
            allowed: Further names, from `host_name`.
            origins: From `origin_of`.

        Raises:
            OSError: If the host is unknown.
        """
        addresses = {_address(str(info[4][0])) for info in socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM)}
        everywhere = not host or any(address is not None and address.is_unspecified for address in addresses)
        names = {*allowed, *(str(address) for address in addresses), *([host_name(host)] if host else [])}
        if everywhere or not all(address is not None and address.is_loopback for address in addresses):
            names |= _own_names()
        return cls(names=frozenset(names), any_address=everywhere, origins=frozenset(origins))

    def check(self, method: str, http_version: str, headers: Sequence[Header]) -> str | None:
        """Refuse a request by an unknown name, or of a foreign page.

        Args:
            method: Of the request.
            http_version: Of the request; 1.0 has no Host.
            headers: Of the request.

        Returns:
            The origin of a page of elsewhere that may read the answer; None for all other clients.

        Raises:
            ApiError: 403; 400 where a header is damaged.
        """
        host = self._host(_only(headers, b"host", "Host"), http_version)
        given = _only(headers, b"origin", "Origin")
        if given is None:
            site = _only(headers, b"sec-fetch-site", "Sec-Fetch-Site")
            if method not in _READING and site not in (None, "same-origin", "none"):
                raise _foreign("another site", None)
            return None
        try:
            origin = origin_of(given)
        except ValueError:
            raise _foreign(repr(given[:80]), None) from None
        if host is not None and origin.partition("://")[2] == _without_usual_port(origin, *host):
            return None
        if origin not in self.origins:
            raise _foreign(origin, origin)
        return origin

    def _host(self, given: str | None, http_version: str) -> tuple[str, str] | None:
        if given is None:
            if http_version == "1.0":  # health checks of load balancers; no browser sends it
                return None
            raise ApiError(400, "invalid_value", "Host: the request has none; send one", param="Host")
        match = _AUTHORITY.fullmatch(given)
        name = _plain(match[1]) if match else ""
        if match is None or not name:
            raise ApiError(400, "invalid_value", f"Host: must be NAME or NAME:PORT, got {given[:80]!r}", param="Host")
        address = _address(name)
        known = (
            name in self.names
            or (address is not None and str(address) in self.names)
            or (name == "localhost" or name.endswith(".localhost"))
            or (address is not None and (self.any_address or address.is_loopback or address.is_unspecified))
        )
        if not known:
            raise ApiError(
                403,
                "unknown_host",
                f"Host: this server does not answer by the name {name[:80]!r}; if it is one of its own, start it with "
                f"--allow-host {name[:80]}",
                param="Host",
            )
        return name, match[2] or ""


def host_name(text: str) -> str:
    """A name or address as it is compared.

    Raises:
        ValueError: If it is neither; an address with its port is not.
    """
    match = _AUTHORITY.fullmatch(text)
    address = _address(text)
    if address is not None:
        return str(address)
    if match is None or match[2] is not None or "*" in text:
        raise ValueError(f"must be one name or address without scheme and port, got {text!r}")
    return _plain(match[1].encode("idna").decode())


def origin_of(text: str) -> str:
    """An origin as it is compared: lower case, without the usual port of its scheme.

    Raises:
        ValueError: If it is none; "null" and "*" are none.
    """
    match = _ORIGIN.fullmatch(text)
    place = _AUTHORITY.fullmatch(match[2]) if match else None
    if match is None or place is None or "*" in text:
        raise ValueError(f"must be SCHEME://HOST or SCHEME://HOST:PORT, got {text!r}")
    scheme = match[1].lower()
    return f"{scheme}://{_without_usual_port(scheme, _plain(place[1]), place[2] or '')}"


def cors_headers(origin: str) -> list[Header]:
    """What lets a page of that origin read an answer."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"X-Request-ID, X-Seed, X-Generation-Time, X-Enhance-Note, Retry-After"),
        (b"vary", b"Origin"),
    ]


def preflight_headers(headers: Sequence[Header]) -> list[Header] | None:
    """What the browser of a page that may call is told before it does; None if it does not ask."""
    if _only(headers, b"access-control-request-method", "Access-Control-Request-Method") is None:
        return None
    wanted = _only(headers, b"access-control-request-headers", "Access-Control-Request-Headers") or ""
    answer = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", b"600")]
    if _TOKENS.fullmatch(wanted):
        answer.append((b"access-control-allow-headers", wanted.encode("latin-1")))
    if any(name.lower() == b"access-control-request-private-network" for name, _ in headers):
        answer.append((b"access-control-allow-private-network", b"true"))
    return answer


def _foreign(whose: str, origin: str | None) -> ApiError:
    way = f"; if they may, start it with --cors-origin {origin}" if origin else ""
    return ApiError(403, "foreign_origin", f"Origin: pages of {whose} may not use this server{way}", param="Origin")


def _only(headers: Sequence[Header], name: bytes, shown: str) -> str | None:
    found = [value.decode("latin-1").strip() for each, value in headers if each.lower() == name]
    if len(found) > 1:
        raise ApiError(400, "invalid_value", f"{shown}: given {len(found)} times; send it once", param=shown)
    return found[0] if found else None


def _plain(name: str) -> str:
    name = name.lower().removesuffix(".")
    address = _address(name)
    return name if address is None else str(address)


def _without_usual_port(origin: str, name: str, port: str) -> str:
    scheme = origin.partition("://")[0]
    shown = f"[{name}]" if ":" in name else name
    return shown if port in ("", _PORTS.get(scheme)) else f"{shown}:{port}"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address, also in brackets, also as short as C libraries take it (127.1)."""
    text = text.removeprefix("[").removesuffix("]").partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if not re.fullmatch(r"(0x[0-9a-fA-F]*|[0-9]+)(\.(0x[0-9a-fA-F]*|[0-9]+)){0,3}", text):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(text))
        except OSError:
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _own_names() -> set[str]:
    """Names of this machine: its own, whole and short, in its domain and in that of multicast DNS."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return {name, short, f"{short}.local", socket.getfqdn().lower().removesuffix(".")} - {""}
