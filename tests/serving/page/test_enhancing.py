"""A prompt is written out on request, shown beside its picture, taken over, and read back from the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from playwright.sync_api import Route, expect

from max_zimage.request.metadata import read_parameters
from max_zimage.serving.store.records import OnItsWay
from tests.references.browser import WAIT, Visit
from tests.references.chat_stub import ChatStub
from tests.references.servers import Server


def test_what_was_written_is_shown_and_can_be_taken(here: Visit, writer: ChatStub, tmp_path: Path) -> None:
    page, asked = here.page, len(writer.asked)
    expect(page.locator("#enhance-help")).to_have_text("By writer, which adds what you do not say.")
    page.get_by_label("Write it out first").check()
    here.drawn(prompt="a star", seed=7, steps=2)
    expect(page.locator("#revised")).to_contain_text("a star on silk")
    expect(page.locator("figcaption")).to_have_text("a star")
    assert [each["seed"] for each in writer.asked[asked:]] == [7]
    (tmp_path / "picture.png").write_bytes(here.saved())
    kept = read_parameters(tmp_path / "picture.png")
    assert (kept.prompt, kept.original_prompt, kept.enhanced_by) == ("a star on silk", "a star", "writer")
    page.get_by_role("button", name="Use its settings").click()
    expect(page.locator("#prompt")).to_have_value("a star")
    expect(page.locator("#enhance")).to_be_checked()
    page.get_by_role("button", name="Use this prompt").click()
    expect(page.locator("#prompt")).to_have_value("a star on silk")
    expect(page.locator("#enhance")).not_to_be_checked()
    page.set_input_files("#read-file", tmp_path / "picture.png")
    said = page.locator("#read-said")
    expect(said).to_contain_text("its prompt was written out by writer from “a star", timeout=WAIT)
    expect(said).not_to_contain_text("left out")


def test_a_prompt_that_is_not_written_out_is_drawn_with_a_word(here: Visit, writer: ChatStub) -> None:
    here.page.get_by_label("Write it out first").check()
    writer.status = 500
    try:
        here.drawn(prompt="a star", seed=7, steps=2)
    finally:
        writer.status = 200
    expect(here.page.locator(".warning")).to_contain_text("the prompt is drawn as it was given: writer answered with")
    expect(here.page.locator("#revised")).to_have_count(0)


def test_that_a_prompt_is_being_written_out_is_said_until_it_is(
    here: Visit, writer: ChatStub, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = here.page.locator("#progress-said")
    here.page.get_by_label("Write it out first").check()
    here.set(prompt="a star", seed=7, width=512, height=512, steps=60)
    monkeypatch.setattr(writer, "wait", 2.0)
    here.page.click("#draw")
    expect(said).to_have_text("Writing the prompt out", timeout=WAIT)
    expect(here.page.locator("#live")).to_have_text("Writing the prompt out")
    expect(here.page.locator(".thumb").first).to_have_attribute("aria-label", "enhancing: a star")
    assert here.page.locator("#progress").evaluate("bar => bar.position") == -1  # nobody knows how far it is
    expect(said).to_have_text(re.compile(r"Step \d+ of 60"), timeout=WAIT)
    here.page.click("#cancel")
    expect(here.page.get_by_role("heading", name="Nothing drawn yet")).to_be_visible()
    cancelled = served.metric('zimage_cancellations_total{by="api"}')
    here.page.click("#draw")
    expect(said).to_have_text("Writing the prompt out", timeout=WAIT)
    here.page.click("#cancel")  # and what is only written out ends as well
    expect(here.page.get_by_role("heading", name="Nothing drawn yet")).to_be_visible()
    assert served.metric('zimage_cancellations_total{by="api"}') == cancelled + 1


@pytest.mark.parametrize("status", [*get_args(OnItsWay), "lost", "failed"])
def test_every_status_that_a_server_can_say_is_shown(here: Visit, status: str) -> None:
    """Of a stream that a proxy holds back; what became of a request its stream says, whatever else is said."""
    answers = {"queued": {"before": 2}, "running": {"step": 3, "steps": 8}}
    told = {"id": "x", "status": status} | answers.get(status, {})
    said = {"enhancing": "Writing the prompt out", "queued": "Waiting, 2 requests before this one"}
    said |= {"running": "Step 3 of 8"}
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.method)
        route.fulfill(json=told)

    here.page.route("**/v1/requests/*", answer)
    here.page.route("**/v1/images/generations", lambda route: None)  # no answer
    here.set(prompt="a star")
    here.page.click("#draw")
    expect(here.page.locator("#progress-said")).to_have_text(said.get(status, "Sending"), timeout=WAIT)
    here.page.wait_for_timeout(100 if status in said else 400)
    expect(here.page.locator("#progress-said")).to_have_text(said.get(status, "Sending"))
    assert set(asked) == {"GET"}
