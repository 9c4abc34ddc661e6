"""The page's files over HTTP: what a browser is told of them, who may have them, and that they ask nobody else."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from max_zimage.serving.errors import ApiError
from max_zimage.serving.http import routes_page, static_files
from max_zimage.serving.http.callers import Callers
from max_zimage.serving.http.middleware import AccessMiddleware
from max_zimage.serving.metrics import Metrics
from tests.references.servers import Server, error_of

FILES = sorted(static_files.FOLDER.rglob("*.*"))


def ask(method: str, path: str, key: str | None = "secret", **headers: str) -> httpx.Response:
    """Ask a gate with a key, behind which the page's files are, and one route of data."""
    app = FastAPI(docs_url=None, redoc_url=None)
    app.include_router(routes_page.router)
    app.add_api_route("/v1/models", lambda: "data")

    @app.exception_handler(ApiError)
    async def on_refusal(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), status_code=error.status)

    async def asked() -> httpx.Response:
        callers = Callers.of("127.0.0.1", (), ())
        gate = AccessMiddleware(app, callers=callers, api_key=key, body_bytes=100, metrics=Metrics())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://127.0.0.1") as client:
            return await client.request(
                method, path, headers={each.replace("_", "-"): headers[each] for each in headers}
            )

    return asyncio.run(asked())


def test_files_are_there_without_the_key_and_data_is_not() -> None:
    for path, file in static_files.files().items():
        answer = ask("GET", path)
        assert (answer.status_code, answer.content) == (200, file.content)
    assert ask("GET", "/v1/models").status_code == 401
    for path in (
        "/static",
        "/static/",
        "/static/none.js",
        "/docs/",
        "/index.html",
    ):
        assert ask("GET", path).status_code == 401, path
    assert ask("POST", "/").status_code == 405


def test_nothing_else_is_answered() -> None:
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/js",
    ):
        assert ask("GET", path, key=None).status_code == 404, path
    assert {path.suffix for path in FILES} <= set(static_files.KINDS), "a file of a kind that nobody can ask for"


def test_a_browser_is_told_to_hold_the_page_to_itself() -> None:
    for path, kind in (("/", "text/html"), ("/docs", "text/html"), ("/static/js/app.js", "text/javascript")):
        headers = ask("GET", path).headers
        assert headers["content-type"].startswith(kind)
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert policy["img-src"] == "'self' blob: data:"
        assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
        assert not {"script-src", "style-src", "connect-src"} & set(policy), "these are as default-src says"
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-cache")


def test_what_a_browser_has_is_not_sent_again() -> None:
    first = ask("GET", "/static/js/app.js")
    tag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    for known in (tag, f'"other", W/{tag}', "*"):
        again = ask("GET", "/static/js/app.js", If_None_Match=known)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert ask("GET", "/static/js/app.js", If_None_Match='"other"').status_code == 200
    tags = [file.tag for path, file in static_files.files().items() if path not in static_files.PAGES]
    assert len(set(tags)) == len(tags)
    head = ask("HEAD", "/static/js/app.js")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(first.content)))


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_foreign_pages_get_none_of_it(headers: dict[str, str]) -> None:
    for path in ("/", "/docs", "/static/js/app.js", "/static/none"):
        assert ask("GET", path, **headers).status_code == 403


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_name_only_files_that_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    if path.suffix == ".html":
        named = [
            each for each in re.findall(r'(?:src|href)="([^"#]+)"', text) if each not in ("docs", "./", "openapi.json")
        ]
        assert [each for each in named if f"/{each}" not in static_files.files()] == []
        assert not re.search(r"<script>|<style|\sstyle=|\son\w+=|javascript:", text)
        ids = re.findall(r'\sid="([^"]+)"', text)
        assert len(ids) == len(set(ids))
    if path.suffix == ".js":
        named = re.findall(r'from "\./([\w.]+)"', text)
        assert [each for each in named if f"/static/js/{each}" not in static_files.files()] == []
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_the_real_server_has_them_too(server: Server) -> None:
    with httpx.Client(base_url=server.url) as stranger:
        assert stranger.get("/").text == (static_files.FOLDER / "index.html").read_text(encoding="utf-8")
        assert stranger.get("/docs").status_code == 200
        assert stranger.get("/health").status_code == 200
        for method, path in (("GET", "/v1/capabilities"), ("POST", "/v1/parameters"), ("GET", "/openapi.json")):
            assert error_of(stranger.request(method, path))["code"] == "invalid_api_key"
        assert "cdn" not in stranger.get("/docs").text
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"GET /static/../../app.py HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b" 401 " in raw.recv(1000).splitlines()[0]
