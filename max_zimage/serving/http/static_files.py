"""The web page's files: read once, answered with what a browser needs to keep them and to trust nothing else.

The page is plain HTML, CSS and ES modules that call this server alone; its policy has the browser hold it to that.
Reference: Content Security Policy Level 3; RFC 9110, ETag and If-None-Match.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).with_name("static")
PREFIX = "/static/"
PAGES: Mapping[str, str] = {"/": "index.html", "/docs": "docs.html"}
"""Path -> the file that is answered there."""

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Endings of the files that are served, and what each is."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
"""No script, style, picture or connection of elsewhere, none inside the HTML, and no frame around the page."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, and asked for again each time: another version of the server has other files under the same names.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class StaticFile:
    """One file.

    Attributes:
        content: Its bytes.
        kind: Its media type.
        tag: Its ETag, which changes with its content.
    """

    content: bytes
    kind: str
    tag: str


@cache
def files() -> Mapping[str, StaticFile]:
    """All that is served, by path. Nothing else in the folder, or outside of it, can be asked for."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in KINDS and path.is_file():
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[PREFIX + path.relative_to(FOLDER).as_posix()] = StaticFile(content, KINDS[path.suffix], tag)
    return found | {path: found[PREFIX + name] for path, name in PAGES.items()}


def is_static(path: str) -> bool:
    """Whether a path is a file's, which holds nothing of the server's and is there without its key."""
    return path in files()


def answered(request: Request, path: str) -> Response | None:
    """The file of a path, or that the browser has it already; None if there is none."""
    file = files().get(path)
    if file is None:
        return None
    headers = {**HEADERS, "ETag": file.tag}
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)
