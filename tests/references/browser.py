"""The web page in a real browser: Debian's Chromium, driven by Playwright, with everything watched that must not be.

Nothing is downloaded: the browser is the system's. Where there is none, tests of the page are skipped, unless
MAX_ZIMAGE_BROWSER says that it is required.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

VARIABLE = "MAX_ZIMAGE_BROWSER"
REQUIRED = "required"
NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT = 600_000  # milliseconds, for a picture whose graphs are compiled beside other tests
KEY_NAME = "max-zimage-key"
# A browser reports what its policy refuses as an event, also what the page does not hear of.
_WATCH = """
window.refusals = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.refusals.push(`${event.effectiveDirective} ${event.blockedURI}`));
"""


def found() -> str | None:
    """The browser's program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser without windows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found(), args=["--no-sandbox"] if os.geteuid() == 0 else [], timeout=WAIT
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One person's visit: a browser context of its own, with its own storage.

    Attributes:
        context: Of the browser.
        page: Its tab.
        url: Of the server.
        hosts: Whoever was asked for anything.
        complaints: What the console said of errors and of the policy.
    """

    context: BrowserContext
    page: Page
    url: str
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.context.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._said(message.type, message.text))

    def _said(self, kind: str, text: str) -> None:
        # That an answer is 400 or 401 a browser calls an error too.
        if kind == "error" and not text.startswith("Failed to load resource"):
            self.complaints.append(text)

    def check(self) -> None:
        """Nothing went wrong that nobody saw, and nobody else was asked."""
        assert self.complaints == []
        assert self.page.evaluate("window.refusals ?? []") == []
        assert self.hosts - {""} <= {urlsplit(self.url).netloc}

    def open(self, path: str = "/") -> Page:
        self.page.goto(self.url + path)
        if path == "/":
            self.page.wait_for_selector("#draw:not(:disabled)", timeout=WAIT)
        return self.page

    def set(self, **fields: Any) -> None:
        """Fill fields by their ids."""
        for name, value in fields.items():
            self.page.fill(f"#{name}", str(value))

    def drawn(self, **fields: Any) -> str:
        """Fill fields, draw, and wait for the picture; its id."""
        self.set(**fields)
        before = self.shown_id()
        self.page.click("#draw")
        self.page.wait_for_function(
            "before => document.querySelector('#large') && document.querySelector('#large').src !== before",
            arg=before,
            timeout=WAIT,
        )
        return str(self.shown_id())

    def shown_id(self) -> str | None:
        return self.page.evaluate("document.querySelector('#large')?.src ?? null")

    def saved(self) -> bytes:
        """The file of the picture that is shown, as its user would save it."""
        with self.page.expect_download() as download:
            self.page.get_by_role("link", name="Download").click()
        return Path(download.value.path()).read_bytes()


@contextmanager
def visit(browser: Browser, url: str, key: str | None = None, **options: Any) -> Iterator[Visit]:
    """Visit a server's page, and check at the end that nothing went wrong behind its user's back.

    Args:
        browser: From `launched`.
        url: Of the server.
        key: That its user has entered before.
        **options: Of the browser context, such as viewport and color_scheme.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    context.add_init_script(_WATCH)
    if key is not None:
        context.add_init_script(f"sessionStorage.setItem('{KEY_NAME}', '{key}')")
    context.set_default_timeout(WAIT)
    here = Visit(context, context.new_page(), url)
    here.watch()
    try:
        yield here
        here.check()
    finally:
        context.close()


def pixels(content: bytes) -> np.ndarray:
    """A picture's file as uint8 [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
