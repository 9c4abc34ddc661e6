"""Everybody can use the page: contrast, names and order of its controls, narrow screens; and it asks nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.references import browser as browsers
from tests.references.browser import KEY_NAME, Visit
from tests.references.servers import KEY, Server

PHONE = {"width": 360, "height": 740}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "light", "viewport": PHONE, "has_touch": True},
    "dark phone": {"color_scheme": "dark", "viewport": PHONE, "has_touch": True},
}


def check_axe(page: Page, where: str) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, f"{where}: {found.generate_report()}"


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing(look: str, browser: Browser, served: Server) -> None:
    with browsers.visit(browser, served.url, KEY, **LOOKS[look]) as here:
        page = here.open()
        check_axe(page, "nothing drawn yet")
        page.locator("#advanced summary").click()
        page.select_option("#sampler", "heun")
        here.set(prompt="x", steps=61)
        page.click("#draw")
        expect(page.locator("#steps-error")).to_be_visible()
        check_axe(page, "an error, and the advanced part")
        here.drawn(prompt="a red star on a blue background", seed=3, steps=1)
        check_axe(page, "a picture")
        page.get_by_role("button", name="Use as start image").click()
        page.click("#mask-open")
        check_axe(page, "painting a mask")
        page.keyboard.press(" ")
        page.click("#mask-done")
        page.fill("#feather", "4")
        check_axe(page, "a mask with a soft edge")
        page.locator("#composite-field").scroll_into_view_if_needed() if page.locator(
            "#composite-field"
        ).is_visible() else None
        check_axe(page, "a start image")
        here.open("/docs")
        page.wait_for_selector(".route")
        page.locator("details summary").first.click()
        check_axe(page, "the API")


def test_axe_would_find_something(here: Visit) -> None:
    here.page.evaluate("document.body.append(document.createElement('input'))")
    assert Axe().run(here.page).violations_count > 0


@pytest.mark.parametrize(
    ("planted", "blamed"),
    [
        ("const tag = document.createElement('img'); tag.src = 'http://evil.example/x.png'", "img-src"),
        ("const tag = document.createElement('div'); tag.setAttribute('style', 'color: red')", "inline style"),
        ("const tag = document.createElement('iframe'); tag.src = 'http://evil.example/'", "Framing"),
        ("const tag = document.createElement('a'); tag.innerHTML = '<b>x</b>'", "TrustedHTML"),
    ],
    ids=lambda value: "",
)
def test_what_the_policy_forbids_is_noticed(planted: str, blamed: str, browser: Browser, served: Server) -> None:
    visits = []
    with pytest.raises(AssertionError), browsers.visit(browser, served.url, KEY) as here:
        visits.append(here)
        page = here.open()
        page.evaluate(f"() => {{ try {{ {planted}; document.body.append(tag) }} catch {{}} }}")
        page.wait_for_function("() => refusals.length > 0")
    assert any(blamed in each for each in visits[0].complaints), visits[0].complaints


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_cut_off(width: int, browser: Browser, served: Server) -> None:
    with browsers.visit(browser, served.url, KEY, viewport={"width": width, "height": 740}) as here:
        page = here.open()
        page.locator("#advanced summary").click()
        here.drawn(prompt="a red star on a blue background " + "x" * 80, seed=3, steps=1)
        wide = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1]
        outside = page.evaluate(
            """[...document.querySelectorAll("button, input, select, textarea, a, img, label")]
            .filter((each) => each.checkVisibility() && !each.closest(".skip, .sr"))
            .map((each) => [each, each.getBoundingClientRect()])
            .filter(([each, box]) => box.left < -1 || box.right > innerWidth + 1)
            .map(([each]) => each.id || each.outerHTML.slice(0, 80))"""
        )
        assert outside == []


def test_everything_is_reached_by_the_tab_key(here: Visit) -> None:
    page = here.page
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    reached = ["prompt"]
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "draw":
            break
    wanted = ["prompt", "template", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "dice"]
    wanted += ["lock", "n", "step_cache", "start-file", "read-file", "lora-add", "draw"]
    assert [each for each in reached if each in wanted] == wanted
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_colours_are_the_systems_until_chosen(browser: Browser, served: Server) -> None:
    def dark(page: Page) -> bool:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        return sum(colour[:3]) < 200

    with browsers.visit(browser, served.url, KEY, color_scheme="dark") as here:
        page = here.open()
        assert dark(page)
        page.click("#theme")  # light
        assert not dark(page)
        page.reload()
        assert not dark(page)
        page.click("#theme")  # dark
        page.emulate_media(color_scheme="light")
        assert dark(page)
        page.click("#theme")  # as the system
        assert not dark(page)


def test_nothing_moves_where_that_is_not_wanted(browser: Browser, served: Server) -> None:
    for wish, moves in (("reduce", False), ("no-preference", True)):
        with browsers.visit(browser, served.url, KEY, reduced_motion=wish) as here:
            page = here.open()
            for transition in page.locator("#draw, .thumb, .drop").evaluate_all(
                "all => all.map((each) => getComputedStyle(each).transitionProperty)"
            ):
                assert (transition != "none") == moves


@pytest.fixture
def stranger(browser: Browser, served: Server) -> Iterator[Visit]:
    """Somebody who has not entered the key."""
    with browsers.visit(browser, served.url) as found:
        yield found


def test_the_key_is_asked_for_and_stays_in_the_tab(stranger: Visit) -> None:
    page = stranger.page
    page.goto(stranger.url)
    dialog = page.locator("#key-dialog")
    expect(dialog).to_be_visible()
    expect(page.locator("#key")).to_be_focused()
    check_axe(page, "the key")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-error")).to_have_text("That was not the key.")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#draw:not(:disabled)")
    expect(dialog).to_be_hidden()
    stranger.drawn(prompt="a red star", steps=1)
    stored = page.evaluate("[sessionStorage, localStorage].map((each) => JSON.stringify(each))")
    assert KEY in stored[0]
    assert KEY not in stored[1]
    assert page.evaluate("document.cookie") == ""
    page.reload()
    page.wait_for_selector("#draw:not(:disabled)")
    expect(dialog).to_be_hidden()
    assert page.evaluate(f"sessionStorage.getItem('{KEY_NAME}')") == KEY
    page.click("#key-open")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert page.evaluate(f"sessionStorage.getItem('{KEY_NAME}')") == KEY
    with stranger.context.expect_page() as opened:
        page.evaluate("window.open('/', '_blank', 'noopener')")
    expect(opened.value.locator("#key-dialog")).to_be_visible()


def test_the_page_of_the_api_has_every_route(stranger: Visit, served: Server) -> None:
    page = stranger.page
    page.goto(f"{stranger.url}/docs")
    expect(page.locator("#doc-said")).to_have_text("The description of the API is shown with the key.")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector(".route")
    paths = served.client.get("/openapi.json").json()["paths"]
    wanted = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert [text.replace("\n", " ") for text in page.locator(".route h2").all_inner_texts()] == wanted
    fields = served.client.get("/v1/capabilities").json()["fields"]
    table = page.locator(".route", has_text="/v1/images/edits").locator("table").inner_text
    page.locator(".route", has_text="/v1/images/edits").locator("summary").click()
    assert [each["name"] for each in fields if each["name"] not in table()] == []


def test_a_page_of_elsewhere_can_neither_draw_nor_show_it(browser: Browser, served: Server) -> None:
    """With the headers that a real browser sends of it, whatever it tries."""
    tries = """async (url) => {
        const told = [];
        for (const type of ["text/plain", "application/json"]) for (const mode of ["no-cors", "cors"]) {
            const options = { method: "POST", mode, headers: { "Content-Type": type }, body: '{"prompt": "x"}' };
            try {
                told.push((await fetch(url, { ...options, signal: AbortSignal.timeout(3000) })).type);
            } catch {
                told.push("refused");
            }
        }
        return told;
    }"""
    frame = "(url) => { const it = document.createElement('iframe'); it.src = url; document.body.append(it) }"
    answers: list[int] = []
    context = browser.new_context()
    try:
        context.route("http://evil.example/**", lambda route: route.fulfill(body="<p>", content_type="text/html"))
        page = context.new_page()
        page.goto("http://evil.example/")
        page.on("response", lambda answer: answers.append(answer.status))
        drawn = served.metric("zimage_images_total")
        told = page.evaluate(tries, f"{served.url}/v1/images/generations")
        assert set(told) <= {"opaque", "refused"}, told
        assert set(answers) <= {403}, answers
        assert served.metric("zimage_images_total") == drawn
        page.evaluate(frame, served.url)
        page.wait_for_timeout(1000)
        assert all("max_zimage" not in each.content() for each in page.frames[1:])
    finally:
        context.close()
