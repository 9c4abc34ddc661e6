"""The page draws what the API draws, tells of it while it does, cancels, remembers, and reads pictures back."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import expect

from max_zimage.request.metadata import GenerationParameters, read_parameters
from tests.references.browser import WAIT, Visit, pixels
from tests.references.scenes import recognize
from tests.references.servers import SLOW, Server

PROMPT = "a red star on a blue background"
LONG: dict[str, Any] = {"width": 512, "height": 512, "steps": 40}
"""Takes ten seconds or more on two cores; nothing waits for its end."""


def of_api(served: Server, **body: Any) -> bytes:
    answer = served.draw(PROMPT, **body)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def parameters_of(content: bytes, folder: Path) -> GenerationParameters:
    (folder / "picture").write_bytes(content)
    return read_parameters(folder / "picture")


def drop(here: Visit, zone: str, content: bytes, name: str = "dropped.png", kind: str = "image/png") -> None:
    """Let go of a file above a zone, as a person with a mouse does."""
    data = here.page.evaluate_handle(
        """([text, name, kind]) => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
            data.items.add(new File([bytes], name, { type: kind }));
            return data;
        }""",
        [base64.b64encode(content).decode(), name, kind],
    )
    for event in ("dragenter", "dragover", "drop"):
        here.page.dispatch_event(zone, event, {"dataTransfer": data})


def test_it_draws_the_picture_of_the_api(here: Visit, served: Server) -> None:
    here.drawn(prompt=PROMPT, seed=7, steps=8)
    saved = here.saved()
    np.testing.assert_array_equal(pixels(saved), pixels(of_api(served, seed=7, steps=8)))
    assert recognize(pixels(saved))[0] == "red"
    shown = here.page.locator("#large").evaluate("image => [image.naturalWidth, image.naturalHeight, image.alt]")
    assert shown == [128, 128, PROMPT]
    expect(here.page.locator("dl.facts")).to_contain_text("7")
    expect(here.page.locator("#live")).to_contain_text("The picture is there")


def test_several_pictures_and_a_size(here: Visit, served: Server) -> None:
    here.page.get_by_role("button", name="Wide").click()
    width, height = (int(here.page.input_value(f"#{side}")) for side in ("width", "height"))
    assert (width % 16, height % 16) == (0, 0)
    assert 1.6 < width / height < 2.1
    assert 0.8 < width * height / 128**2 < 1.2
    here.drawn(prompt=PROMPT, seed=3, steps=2, n=3)
    thumbs = here.page.locator(".thumb")
    expect(thumbs).to_have_count(3)
    for index in range(3):
        thumbs.nth(index).click()
        same = of_api(served, seed=3 + index, steps=2, size=f"{width}x{height}")
        np.testing.assert_array_equal(pixels(here.saved()), pixels(same))


def test_progress_preview_and_escape(here: Visit, served: Server) -> None:
    cancelled = served.metric('zimage_cancellations_total{by="api"}')
    here.set(prompt=PROMPT, **LONG)
    here.page.keyboard.press("Control+Enter")
    said = here.page.locator("#progress-said")
    seen: set[int] = set()
    preview = here.page.locator(".hero img.preview")
    while not preview.count():
        if match := re.fullmatch(r"Step (\d+) of 40", said.inner_text()):
            seen.add(int(match[1]))
        here.page.wait_for_timeout(30)
    assert len(seen) > 3, f"steps are told one by one, got {sorted(seen)}"
    assert max(seen) <= 20
    size = preview.evaluate("async image => { await image.decode(); return [image.naturalWidth, image.naturalHeight] }")
    assert size == [64, 64]
    assert "blur" in preview.evaluate("image => getComputedStyle(image).filter")
    assert here.page.locator("#progress").evaluate("bar => bar.max === 40 && bar.value > 0")
    expect(here.page.locator("#elapsed")).to_have_text(re.compile(r"[\d.]+ (s|min.*)"))
    expect(here.page.locator("#live")).to_have_text(re.compile(r"Drawing, \d+ percent"))
    here.page.keyboard.press("Escape")
    expect(here.page.locator("#live")).to_have_text("The draw is cancelled.")
    expect(here.page.get_by_role("heading", name="Nothing drawn yet")).to_be_visible()
    assert served.metric('zimage_cancellations_total{by="api"}') == cancelled + 1
    here.drawn(prompt=PROMPT, width=128, height=128, steps=1)  # and it goes on


@contextmanager
def busy(served: Server, requests: int) -> Iterator[None]:
    """Keep a server busy, until left."""
    stop, begun = threading.Event(), threading.Barrier(requests + 1)

    def ask(seed: int) -> None:
        body = {"prompt": "x", "stream": True, **SLOW, "steps": 60, "seed": seed, "guidance_scale": float(seed)}
        with served.client.stream("POST", "/v1/images/generations", json=body) as answer:
            assert answer.status_code == 200
            begun.wait(60)
            stop.wait(120)

    with ThreadPoolExecutor(requests) as pool:
        futures = [pool.submit(ask, seed) for seed in range(1, requests + 1)]
        try:
            begun.wait(60)
            yield
        finally:
            stop.set()
    for future in futures:
        future.result()


def test_the_place_in_the_queue_and_the_cancel_button(here: Visit, served: Server) -> None:
    with busy(served, 3):  # two in the worker, one that waits
        here.set(prompt=PROMPT)
        here.page.click("#draw")
        said = here.page.locator("#progress-said")
        expect(said).to_have_text("Waiting, 1 request before this one", timeout=WAIT)
        here.page.click("#draw")
        expect(said).to_have_text("Waiting, 2 requests before this one", timeout=WAIT)
        expect(here.page.locator(".thumb")).to_have_count(2)
        here.page.click("#cancel")
        expect(here.page.locator(".thumb")).to_have_count(1)
        here.page.click("#cancel")
        expect(here.page.locator(".thumb")).to_have_count(0)


def test_a_kept_seed_repeats_and_others_do_not(here: Visit) -> None:
    files = [(here.drawn(prompt=PROMPT, steps=2), here.saved())[1] for _ in range(2)]
    assert not np.array_equal(pixels(files[0]), pixels(files[1]))
    here.page.get_by_role("button", name="Same seed").click()
    expect(here.page.locator("#lock")).to_have_attribute("aria-pressed", "true")
    here.drawn()
    np.testing.assert_array_equal(pixels(here.saved()), pixels(files[1]))
    here.page.click("#dice")
    here.drawn()
    assert not np.array_equal(pixels(here.saved()), pixels(files[1]))


def test_a_dropped_picture_is_read_back(here: Visit, served: Server, tmp_path: Path) -> None:
    asked = {"seed": 11, "steps": 3, "size": "144x128", "sampler": "heun", "guidance_scale": [3.0, 2.0, 0.0]}
    asked |= {"guidance_variant": "apg", "apg_eta": 0.5, "negative_prompt": "a ring", "output_format": "png"}
    asked |= {"loras": [{"name": "style.safetensors", "scale": 0.5}]}
    file = of_api(served, **asked)
    drop(here, "#drop-read", file)
    expect(here.page.locator("#read-said")).to_have_text("Settings of dropped.png are in the form.")
    values = {
        name: here.page.input_value(f"#{name}") for name in ("prompt", "negative_prompt", "seed", "width", "steps")
    }
    assert values == {"prompt": PROMPT, "negative_prompt": "a ring", "seed": "11", "width": "144", "steps": "3"}
    assert here.page.input_value("#guidance_scale") == "3, 2, 0"
    assert here.page.input_value("#sampler") == "heun"
    expect(here.page.locator("#advanced-count")).to_have_text("3 changed")
    here.drawn()
    np.testing.assert_array_equal(pixels(here.saved()), pixels(file))
    ours, theirs = (parameters_of(each, tmp_path) for each in (here.saved(), file))
    assert ours == theirs
    drop(here, "#drop-read", b"GIF89a", "x.gif", "image/gif")
    expect(here.page.locator("#image-error")).to_contain_text("is a GIF file; convert it to PNG, JPEG or WebP")


def test_history_survives_a_reload(here: Visit) -> None:
    here.drawn(prompt=PROMPT, seed=1, steps=1)
    here.drawn(prompt="a green ring", seed=2, steps=1)
    last = here.saved()
    here.page.wait_for_function("() => document.body.dataset.kept === '2'")
    here.page.reload()
    thumbs = here.page.locator(".thumb")
    expect(thumbs).to_have_count(2)
    expect(here.page.locator("figcaption")).to_contain_text("a green ring")
    assert here.saved() == last
    thumbs.first.focus()
    here.page.keyboard.press("ArrowRight")
    expect(here.page.locator("figcaption")).to_contain_text(PROMPT)
    expect(thumbs.nth(1)).to_be_focused()
    here.page.get_by_role("button", name="Use its settings").click()
    assert (here.page.input_value("#prompt"), here.page.input_value("#seed")) == (PROMPT, "1")
    here.page.get_by_role("button", name="Delete").click()
    expect(thumbs).to_have_count(1)
    here.page.on("dialog", lambda dialog: dialog.accept())
    here.page.get_by_role("button", name="Clear", exact=True).click()
    expect(here.page.get_by_role("heading", name="Nothing drawn yet")).to_be_visible()
    here.page.reload()
    expect(here.page.get_by_role("heading", name="Nothing drawn yet")).to_be_visible()


def test_parameters_are_copied_as_a_body_of_the_api(here: Visit, served: Server) -> None:
    here.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served.url)
    here.page.locator("#advanced summary").click()
    here.page.select_option("#sigma_shape", "karras")
    here.drawn(prompt=PROMPT, seed=5, steps=2)
    here.page.get_by_role("button", name="Copy parameters").click()
    expect(here.page.get_by_role("button", name="Copied")).to_be_visible()
    body = here.page.evaluate("navigator.clipboard.readText().then(JSON.parse)")
    assert body["sigma_shape"] == "karras"
    again = served.post("/v1/images/generations", **body).json()["data"][0]["b64_json"]
    np.testing.assert_array_equal(pixels(here.saved()), pixels(base64.b64decode(again)))
