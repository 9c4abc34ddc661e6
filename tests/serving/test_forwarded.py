"""What proxies say of a client: believed of those that are named alone; and signs of life on quiet streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.datastructures import URL

from max_zimage.serving.addresses import proxy_network
from max_zimage.serving.http.answers import kept_alive
from max_zimage.serving.http.forwarded import ForwardedMiddleware

TRUSTED = ("10.0.0.0/8", "127.0.0.1/32", "::1/128")
SAID = {"x-forwarded-proto": "https", "x-forwarded-host": "pictures.example.com", "x-forwarded-for": "203.0.113.9"}


def seen(client: Any, headers: dict[str, str] | list[tuple[str, str]], trusted: Any = TRUSTED) -> tuple[str, str]:
    """The URL that a route sees, and the client's address."""
    found: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.update(scope)

    pairs = headers.items() if isinstance(headers, dict) else headers
    raw = [(b"host", b"zimage:8000"), *((name.encode(), value.encode()) for name, value in pairs)]
    scope = {
        "type": "http", "scheme": "http", "path": "/x", "query_string": b"", "headers": raw, "client": client,
        "server": ("10.1.1.1", 8000), "method": "GET",
    }  # fmt: skip
    nothing: Any = None
    asyncio.run(ForwardedMiddleware(app, trusted)(scope, nothing, nothing))
    assert [name for name, _ in found["headers"]].count(b"host") == 1
    return str(URL(scope=found)), (found["client"] or ("",))[0]


@pytest.mark.parametrize("address", ["10.2.3.4", "127.0.0.1", "::1", "::ffff:10.2.3.4"])
def test_a_trusted_proxy_is_believed(address: str) -> None:
    assert seen((address, 5), SAID) == ("https://pictures.example.com/x", "203.0.113.9")


@pytest.mark.parametrize("client", [("11.2.3.4", 5), ("::ffff:11.2.3.4", 5), ("2001:db8::1", 5), None, ("unix", 0)])
def test_nobody_else_is(client: Any) -> None:
    url, address = seen(client, SAID)
    assert url == "http://zimage:8000/x"
    assert address != "203.0.113.9"


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ({}, "http://zimage:8000/x"),
        ({"x-forwarded-host": ""}, "http://zimage:8000/x"),
        ({"x-forwarded-host": "a.example", "x-forwarded-port": "8443"}, "http://a.example:8443/x"),
        ({"x-forwarded-host": "a.example:1", "x-forwarded-port": "8443"}, "http://a.example:1/x"),
        ({"x-forwarded-host": "a.example", "x-forwarded-port": "80"}, "http://a.example/x"),
        (
            {"x-forwarded-host": "a.example", "x-forwarded-port": "443", "x-forwarded-proto": "https"},
            "https://a.example/x",
        ),
        ({"x-forwarded-host": "[2001:db8::5]", "x-forwarded-port": "81"}, "http://[2001:db8::5]:81/x"),
        ({"x-forwarded-host": "evil.example, a.example"}, "http://a.example/x"),
        ({"x-forwarded-host": "a.example", "x-forwarded-port": "x"}, "http://a.example/x"),
        ({"x-forwarded-proto": "gopher"}, "http://zimage:8000/x"),
    ],
)
def test_names_and_ports(headers: dict[str, str], url: str) -> None:
    assert seen(("10.0.0.1", 5), headers)[0] == url


def test_the_client_is_the_first_that_is_no_proxy() -> None:
    chain = {"x-forwarded-for": "192.0.2.1, 203.0.113.9, 10.9.9.9"}
    assert seen(("10.0.0.1", 5), chain)[1] == "203.0.113.9"


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.0/99", "10.0.0.1/8", "*", ""])
def test_networks_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be an address or a network such as 10.0.0.0/8".replace(".", r"\.")):
        proxy_network(text)


def test_networks() -> None:
    assert [proxy_network(each) for each in ("10.0.0.0/8", "::1", "10.0.0.1")] == [
        "10.0.0.0/8",
        "::1/128",
        "10.0.0.1/32",
    ]


def test_a_quiet_stream_has_signs_of_life_and_all_its_events() -> None:
    async def body() -> list[bytes]:
        async def events() -> AsyncGenerator[bytes, None]:
            yield b"first"
            await asyncio.sleep(0.35)
            yield b"second"
            yield b"third"

        return [each async for each in kept_alive(events(), 0.1)]

    told = asyncio.run(body())
    assert [each for each in told if not each.startswith(b":")] == [b"first", b"second", b"third"]
    signs = told[1 : told.index(b"second")]
    assert set(signs) == {b": still here\n\n"}
    assert 1 <= len(signs) <= 3
    assert len(told) == 3 + len(signs)


def test_an_error_of_a_stream_is_its_error() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"first"
        raise KeyError("x")

    async def body() -> None:
        async for _ in kept_alive(events(), 0.1):
            pass

    with pytest.raises(KeyError):
        asyncio.run(body())


def test_who_leaves_a_quiet_stream_ends_it() -> None:
    ended: list[str] = []

    async def body() -> None:
        async def events() -> AsyncGenerator[bytes, None]:
            try:
                yield b"first"
                await asyncio.sleep(60)
            finally:
                ended.append("here")

        stream = kept_alive(events(), 0.05)
        assert await anext(stream) == b"first"
        assert (await anext(stream)).startswith(b":")
        await stream.aclose()
        assert ended == ["here"]

    asyncio.run(body())
