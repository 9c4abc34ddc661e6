"""The pictures of docs/web-page.md, taken from the page itself: `python -m benchmarks.docs.screenshots`.

A server with the embedded model is started, a browser draws on its page as a person would, and what it shows is saved.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page

from benchmarks.measure import ROOT
from tests.references import browser as browsers
from tests.references.browser import Visit
from tests.references.servers import Server

DOCS = ROOT / "docs"
MOST_BYTES = 150_000
PROMPTS = (
    ("a green circle on a black background", 5),
    ("a white ring on a red background", 2),
    ("a yellow square on a purple background", 4),
    ("a blue triangle on a white background", 9),
    ("an orange star on a green background", 8),
    ("a red star on a blue background", 3),
)
WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 760}, "device_scale_factor": 2, "has_touch": True}


def main(arguments: Sequence[str] | None = None) -> int:
    """Take all of them; 1 if one is too large for the docs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docs.screenshots", description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=DOCS, metavar="DIR", help="folder for the pictures")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, browsers.launched() as browser:
        taken = {
            "web-page-light": _light(browser, server.url),
            "web-page-dark": _dark(browser, server.url),
            "web-page-mask": _mask(browser, server.url),
            "web-page-phone": _phone(browser, server.url),
        }
    too_large = []
    for name, png in taken.items():
        file = options.into / f"{name}.webp"
        Image.open(io.BytesIO(png)).convert("RGB").save(file, quality=82, method=6)
        print(f"{file}: {file.stat().st_size} bytes")
        too_large += [name] if file.stat().st_size > MOST_BYTES else []
    return 1 if too_large else 0


def _light(browser: Browser, url: str) -> bytes:
    """A picture, and others before it."""
    with browsers.visit(browser, url, color_scheme="light", **WIDE) as here:
        page = here.open()
        _draw_all(here)
        _still(page)
        return page.screenshot()


def _dark(browser: Browser, url: str) -> bytes:
    """A picture while it is drawn, and settings that are not the usual ones."""
    with browsers.visit(browser, url, color_scheme="dark", **WIDE) as here:
        page = here.open()
        here.drawn(prompt=PROMPTS[0][0], seed=PROMPTS[0][1])
        here.drawn(prompt=PROMPTS[-1][0], seed=PROMPTS[-1][1])
        page.locator("#advanced summary").click()
        page.select_option("#sampler", "dpmpp_2m")
        here.set(prompt="a purple star on a yellow background", width=192, height=192, steps=60, seed=1)
        page.click("#draw")
        page.wait_for_function("document.querySelector('#progress')?.value > 46")
        page.locator("#find").scroll_into_view_if_needed()
        _still(page)
        taken = page.screenshot()
        page.keyboard.press("Escape")
        return taken


def _mask(browser: Browser, url: str) -> bytes:
    """A mask that is painted."""
    with browsers.visit(browser, url, color_scheme="light", **WIDE) as here:
        page = here.open()
        here.drawn(prompt=PROMPTS[-1][0], seed=PROMPTS[-1][1])
        page.get_by_role("button", name="Use as start image").click()
        page.click("#mask-open")
        box = page.locator("#mask-canvas").bounding_box()
        assert box is not None
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.locator("#brush").fill("22")
        page.mouse.move(middle[0] - 0.2 * box["width"], middle[1])
        page.mouse.down()
        for across, down in ((-0.1, -0.2), (0.1, -0.18), (0.2, 0.02), (0.06, 0.2), (-0.12, 0.16), (0.02, 0.0)):
            page.mouse.move(middle[0] + across * box["width"], middle[1] + down * box["height"], steps=12)
        page.mouse.up()
        return page.screenshot()


def _phone(browser: Browser, url: str) -> bytes:
    """What to draw, and what was drawn, side by side."""
    with browsers.visit(browser, url, color_scheme="light", **PHONE) as here:
        page = here.open()
        _draw_all(here)
        page.evaluate("scrollTo(0, 0)")
        first = page.screenshot()
        page.locator("#hero").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('#hero').scrollIntoView()")
        images = [Image.open(io.BytesIO(each)) for each in (first, page.screenshot())]
    both = Image.new("RGB", (images[0].width * 2 + 40, images[0].height), "#8a8378")
    both.paste(images[0], (0, 0))
    both.paste(images[1], (images[0].width + 40, 0))
    content = io.BytesIO()
    both.save(content, format="PNG")
    return content.getvalue()


def _draw_all(here: Visit) -> None:
    for prompt, seed in PROMPTS:
        here.drawn(prompt=prompt, seed=seed)


def _still(page: Page) -> None:
    """Let what is on its way arrive, and take the mouse away."""
    page.mouse.move(640, 4)
    page.wait_for_timeout(200)


if __name__ == "__main__":
    raise SystemExit(main())
