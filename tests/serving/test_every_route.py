"""Pages of elsewhere, bodies that are no JSON, wrong keys: on every route of the server's own description.

Routes come from openapi.json, so that a new dialect is held to the same rules by being there.
"""

from __future__ import annotations

import re

import httpx
import pytest

from tests.references.servers import KEY, Server, error_of

UNDESCRIBED = ("/", "/docs", "/openapi.json", "/static/js/app.js")
OPEN = ("/health", "/readyz", "/livez")
"""What a balancer may ask without a key."""
NO_BODY = frozenset(f"/sdapi/v1/{name}" for name in ("interrupt", "skip", *(f"refresh-{it}" for it in (
    "checkpoints", "loras", "vae",
))))  # fmt: skip
"""POST without a body, of which none is read; the gate alone stands before them."""
DIALECTS = ("/v1/images/generations", "/v1/responses", "/v1/chat/completions", "/api/generate", "/sdapi/v1/txt2img")
"""One route of each, so that an empty description fails."""


@pytest.fixture(scope="module")
def described(server: Server) -> list[tuple[str, str]]:
    """Method and path of every route that the server describes, names in it filled in."""
    paths = server.client.get("/openapi.json").json()["paths"]
    found = [(method.upper(), re.sub(r"\{\w+\}", "x", path)) for path, each in paths.items() for method in each]
    assert {("POST", path) for path in DIALECTS} <= set(found)
    return found


def posts(described: list[tuple[str, str]]) -> list[str]:
    return [path for method, path in described if method == "POST"]


def test_json_has_to_be_called_so(described: list[tuple[str, str]], server: Server) -> None:
    """What a page may send without asking is no JSON to this server."""
    assert set(posts(described)) > NO_BODY
    for route in (path for path in posts(described) if path not in NO_BODY):
        for kind in (
            None,
            "",
            "text/plain",
            "text/plain; application/json",
            "application/x-www-form-urlencoded",
            "text/json",
            "application/jsonx",
            "application/json; charset=utf-16",
            "application/json; charset=latin-1",
        ):
            headers = {} if kind is None else {"Content-Type": kind}
            answer = server.client.post(route, content=b"[]", headers=headers)
            assert (answer.status_code, error_of(answer)["param"]) == (415, "Content-Type"), (route, kind)
            assert 'send the header "Content-Type: application/json"' in error_of(answer)["message"]
        taken = (
            "application/json",
            "Application/JSON; charset=UTF-8",
            'application/json;charset="utf-8"; v=1',
            "application/a+json",
        )
        for kind in taken:  # and then it is no object
            answer = server.client.post(route, content=b"[]", headers={"Content-Type": kind})
            assert answer.status_code == 400, (route, kind)


def test_no_route_answers_a_foreign_page(described: list[tuple[str, str]], server: Server) -> None:
    url = server.draw(steps=1, response_format="url").json()["data"][0]["url"].removeprefix(server.url)
    paths = {path for _, path in described} | {*UNDESCRIBED, url, "/v1/requests/x", "/nothing"}
    for headers, code in (
        ({"Host": "evil.example"}, "unknown_host"),
        ({"Origin": "http://a.example"}, "foreign_origin"),
        ({"Origin": "null"}, "foreign_origin"),
    ):
        for path in sorted(paths):
            for method in ("GET", "POST", "DELETE", "OPTIONS"):
                answer = server.client.request(method, path, headers=headers)
                assert (answer.status_code, error_of(answer)["code"]) == (403, code), (method, path)
                assert "access-control-allow-origin" not in answer.headers
    without_origin = {"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"}
    for path in posts(described):
        answer = server.client.post(path, content=b"{}", headers=without_origin)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "foreign_origin"), path


def test_its_own_page_may_read_and_draw(described: list[tuple[str, str]], server: Server) -> None:
    own = {"Origin": server.url}
    named = [path for method, path in described if method == "GET" and not path.endswith(("/x", "/x/content"))]
    for path in (*named, *UNDESCRIBED):
        assert server.client.get(path, headers=own).status_code == 200, path
    drawn = server.client.post("/v1/images/generations", json={"prompt": "x", "steps": 1}, headers=own)
    assert drawn.status_code == 200


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}])
def test_a_wrong_key(header: dict[str, str], described: list[tuple[str, str]], server: Server) -> None:
    with httpx.Client(base_url=server.url, headers=header) as client:
        assert [client.get(path).status_code for path in OPEN] == [200] * 3
        closed = [(method, path) for method, path in described if path not in OPEN]
        for method, path in (*closed, ("GET", "/openapi.json")):
            answer = client.request(method, path)
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key"), (method, path)
