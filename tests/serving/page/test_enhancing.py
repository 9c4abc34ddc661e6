"""A prompt is written out on request, shown beside its picture, taken over, and read back from the file."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from max_zimage.request.metadata import read_parameters
from tests.references.browser import WAIT, Visit
from tests.references.chat_stub import ChatStub


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
