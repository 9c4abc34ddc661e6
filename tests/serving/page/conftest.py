"""One server and one browser for all tests of the page."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.references import browser as browsers
from tests.references.browser import Visit
from tests.references.chat_stub import ChatStub, chat_stub
from tests.references.servers import KEY, Server


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if browsers.found() is None:
        reason = f"needs one of {', '.join(browsers.NAMES)} on the path, such as Debian's package chromium"
        if os.environ.get(browsers.VARIABLE) == browsers.REQUIRED:
            pytest.fail(f"the page cannot be tested: {reason}")
        pytest.skip(reason)
    with browsers.launched() as found:
        yield found


@pytest.fixture(scope="package")
def writer() -> Iterator[ChatStub]:
    """Whom the server has prompts written out by."""
    with chat_stub() as running:
        yield running


@pytest.fixture(scope="package")
def served(browser: Browser, writer: ChatStub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key, narrow limits, an adapter and an enhancer; started only where a browser can look at it."""
    from tests.references.loras import STYLE, write_adapter

    folder = tmp_path_factory.mktemp("page")
    (folder / "key").write_text(KEY)
    (folder / "loras").mkdir()
    write_adapter(folder / "loras" / "style.safetensors", STYLE)
    flags = ["--api-key-file", "key", "--lora-folder", "loras", "--max-pixels", "262144", "--max-images", "3"]
    flags += ["--enhancer", writer.url, "--max-steps", "60", "--batch-pictures", "1"]
    with Server(folder, flags, key=KEY, environment={"MAX_ZIMAGE_ENHANCER_API_MODEL": "writer"}) as running:
        yield running


@pytest.fixture
def here(browser: Browser, served: Server) -> Iterator[Visit]:
    """The page, opened by somebody who has the key."""
    with browsers.visit(browser, served.url, KEY) as found:
        found.open()
        yield found
