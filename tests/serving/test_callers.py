"""By which names a server answers, and whose pages may use it."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.callers import Callers, host_name, origin_of
from max_zimage.serving.http.middleware import AccessMiddleware
from max_zimage.serving.metrics import Metrics

LOCAL = Callers.of("127.0.0.1", ("zimage.example.com",), ("https://ui.example.com",))
EVERYWHERE = Callers.of("0.0.0.0", (), ())


def refused(callers: Callers, *headers: tuple[str, str], method: str = "POST", version: str = "1.1") -> str | None:
    """The code of the refusal; None if it is let in."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    try:
        callers.check(method, version, raw)
    except ApiError as error:
        assert error.param in ("Host", "Origin", "Sec-Fetch-Site")
        return error.code
    return None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "localhost.:8000",
        "localhost:",
        "a.localhost:1",
        "127.0.0.1",
        "127.0.0.1:9000",
        "127.5.5.5",
        "127.1",
        "2130706433",
        "[::1]:8000",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0:8000",
        "Zimage.Example.Com.:443",
    ],
)
def test_names_that_are_its_own(host: str) -> None:
    assert refused(LOCAL, ("Host", host)) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io",
        "notlocalhost",
        "zimage.example.com.evil.example",
        "x.zimage.example.com",
        "192.168.1.7",
        "8.8.8.8:8000",
        "[2001:db8::1]:8000",
    ],
)
def test_names_that_are_not(host: str) -> None:
    assert refused(LOCAL, ("Host", host)) == "unknown_host"
    assert refused(LOCAL, ("Host", host), method="GET") == "unknown_host"


@pytest.mark.parametrize(
    "host", ["", ":8000", "local host", "localhost:80:80", "localhost/x", "a@localhost", "[::1", "localhost, evil", "."]
)
def test_damaged_hosts(host: str) -> None:
    assert refused(LOCAL, ("Host", host)) == "invalid_value"


def test_missing_and_doubled_headers() -> None:
    assert refused(LOCAL) == "invalid_value"
    assert refused(LOCAL, version="1.0") is None  # a health check
    assert refused(LOCAL, ("Host", "localhost"), ("Host", "evil.example")) == "invalid_value"
    page = ("Origin", "https://ui.example.com")
    assert refused(LOCAL, ("Host", "localhost"), page, page) == "invalid_value"


def test_on_all_addresses_names_are_the_machines_and_any_address_will_do() -> None:
    for host in (socket.gethostname(), f"{socket.gethostname()}:8000", "localhost", "192.168.1.7", "[2001:db8::1]:1"):
        assert refused(EVERYWHERE, ("Host", host)) is None
    for host in ("evil.example", "192.168.1.7.nip.io"):
        assert refused(EVERYWHERE, ("Host", host)) == "unknown_host"
    assert refused(Callers.of("::", (), ()), ("Host", "evil.example")) == "unknown_host"
    assert Callers.of("", (), ()).any_address


@pytest.mark.parametrize(
    ("host", "origin", "code"),
    [
        ("localhost:8000", "http://localhost:8000", None),
        ("LOCALHOST:8000", "http://localhost:8000", None),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", None),
        ("[::1]:8000", "http://[::1]:8000", None),
        ("zimage.example.com", "https://zimage.example.com", None),  # behind a proxy with a certificate
        ("zimage.example.com:443", "https://zimage.example.com", None),
        ("localhost", "http://localhost:80", None),
        ("localhost:8000", "https://ui.example.com", None),
        ("localhost:8000", "https://UI.example.com:443", None),
        ("localhost:8000", "http://ui.example.com", "foreign_origin"),
        ("localhost:8000", "https://ui.example.com:8443", "foreign_origin"),
        ("localhost:8000", "https://ui.example.com.evil.example", "foreign_origin"),
        ("localhost:8000", "http://localhost:3000", "foreign_origin"),
        ("localhost:8000", "http://127.0.0.1:8000", "foreign_origin"),
        ("localhost:8000", "http://localhost", "foreign_origin"),
        ("localhost:8000", "https://evil.example", "foreign_origin"),
        ("localhost:8000", "null", "foreign_origin"),
        ("localhost:8000", "", "foreign_origin"),
        ("localhost:8000", "localhost:8000", "foreign_origin"),
        ("localhost:8000", "http://localhost:8000 https://evil.example", "foreign_origin"),
        ("localhost:8000", "file://", "foreign_origin"),
    ],
)
def test_origins(host: str, origin: str, code: str | None) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert refused(LOCAL, ("Host", host), ("Origin", origin), method=method) == code


def test_a_page_without_origin_may_read_but_not_write() -> None:
    for site, code in (("cross-site", "foreign_origin"), ("same-site", "foreign_origin"), ("same-origin", None)):
        told = ("Host", "localhost"), ("Sec-Fetch-Site", site)
        assert refused(LOCAL, *told) == code
        assert refused(LOCAL, *told, method="GET") is None
    assert refused(LOCAL, ("Host", "localhost"), ("Sec-Fetch-Site", "none")) is None


def test_flags_are_read_as_they_are_compared() -> None:
    assert host_name("Zimage.Example.com.") == "zimage.example.com"
    assert host_name("[::1]") == host_name("0:0:0:0:0:0:0:1") == "::1"
    assert host_name("bücher.example") == "xn--bcher-kva.example"
    assert origin_of("HTTPS://UI.example.com:443") == "https://ui.example.com"
    assert origin_of("http://[::1]:3000") == "http://[::1]:3000"
    assert origin_of("chrome-extension://abc") == "chrome-extension://abc"
    for wrong in ("", "http://x", "x:80", "a b", "*", "*.example.com", "a/b"):
        with pytest.raises(ValueError, match="must be one name or address without scheme and port"):
            host_name(wrong)
    for wrong in ("", "null", "*", "example.com", "https://", "https://x/path", "https://*.example.com"):
        with pytest.raises(ValueError, match="must be SCHEME://HOST"):
            origin_of(wrong)


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"drawn"})


def ask(method: str, **headers: str) -> httpx.Response:
    """Ask a gate with a key, by a name that it is allowed."""

    async def asked() -> httpx.Response:
        gate = AccessMiddleware(answers, callers=LOCAL, api_key="secret", body_bytes=100, metrics=Metrics())
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(gate), base_url="http://zimage.example.com"
        ) as client:
            return await client.request(
                method,
                "/v1/images/generations",
                headers={name.replace("_", "-"): each for name, each in headers.items()},
            )

    return asyncio.run(asked())


def test_pages_that_may_call_are_told_so() -> None:
    page = "https://ui.example.com"
    wanted = "authorization, content-type, x-stainless-os"
    preflight = ask(
        "OPTIONS",
        Origin=page,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers=wanted,
        Access_Control_Request_Private_Network="true",
    )
    assert preflight.status_code == 204  # without the key, which comes with the request itself
    assert preflight.headers["access-control-allow-origin"] == page
    assert preflight.headers["access-control-allow-headers"] == wanted
    assert preflight.headers["access-control-allow-private-network"] == "true"
    assert {"POST", "GET", "DELETE"} == set(preflight.headers["access-control-allow-methods"].split(", "))
    for key, status in (("Bearer secret", 200), ("Bearer wrong", 401)):
        answer = ask("POST", Origin=page, Authorization=key)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, page)
        assert answer.headers["vary"] == "Origin"
    for foreign in ("https://evil.example", "null"):
        refused = ask("OPTIONS", Origin=foreign, Access_Control_Request_Method="POST")
        assert refused.status_code == 403
        assert not [name for name in refused.headers if name.startswith("access-control")]
    plain = ask("POST", Authorization="Bearer secret")
    assert (plain.status_code, plain.text) == (200, "drawn")
    assert "access-control-allow-origin" not in plain.headers
