"""The embedded enhancer and the embedded model together: a short prompt becomes a caption, and that a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks import enhanced
from max_zimage.enhancer.base import Enhancer
from max_zimage.enhancer.opening import open_enhancer
from tests.paths import ROOT
from tests.references.diffusers_runs import Pair
from tests.references.scenes import recognize
from tests.serving.test_chat import openai_client, run

LOOKS = ("red", "star")


@pytest.fixture(scope="module")
def enhancer() -> Enhancer:
    found = open_enhancer(None, is_embedded=True)
    found.load()
    return found


def test_a_caption_keeps_what_was_asked_for(enhancer: Enhancer) -> None:
    found = [enhancer.enhance("red star", seed=seed) for seed in range(6)]
    assert [each.note for each in found] == [""] * 6
    assert all(f"a {' '.join(LOOKS)} on a" in each.text.replace("large ", "").replace("small ", "") for each in found)
    assert len({each.text for each in found}) > 1
    assert enhancer.enhance("red star", seed=0) == found[0]


def test_the_page_says_what_was_measured() -> None:
    shares = enhanced.kept()
    page = (ROOT / "docs" / "enhance.md").read_text(encoding="utf-8")
    for each in (*shares, enhanced.together(shares)):
        assert enhanced.told(each) in page


def test_its_picture_shows_it(enhancer: Enhancer, embedded: Pair) -> None:
    asked: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 8, "guidance_scale": 2.0, "seed": 1}
    pictures: Any = embedded.ours("red star", **asked, enhance=True)
    kept = pictures.parameters[0]
    assert kept is not None
    assert (kept.original_prompt, kept.enhanced_by) == ("red star", "tiny-diffusion-gemma")
    assert kept.prompt == enhancer.enhance("red star", seed=1).text
    assert recognize(np.asarray(pictures[0]))[:2] == LOOKS
    again = embedded.ours(kept.prompt, **asked, output_type="np")
    np.testing.assert_array_equal(np.asarray(pictures[0]), again[0])


def test_a_chat_with_drafts(enhancer: Enhancer) -> None:
    messages: list[Any] = [{"role": "user", "content": "red star"}]

    async def use(client: httpx.AsyncClient) -> Any:
        api = openai_client(client)
        whole = await api.chat.completions.create(model="tiny-diffusion-gemma", messages=messages, seed=1)
        stream = await api.chat.completions.create(
            model="tiny-diffusion-gemma", messages=messages, seed=1, stream=True, extra_body={"drafts": True}
        )
        return whole, [chunk async for chunk in stream]

    whole, chunks = run(enhancer, use)
    text = whole.choices[0].message.content
    assert text == enhancer.enhance("red star", seed=1).text
    assert whole.usage.completion_tokens == len(text.split())  # each word is a token
    drafts = [chunk.draft for chunk in chunks if not chunk.choices]
    assert len(drafts) > 1
    assert drafts[-1] == text
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text


def test_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from max_zimage.cli.main import main

    assert main(["generate", "red star", "--enhance", "--seed", "1", "--show-prompt", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{open_enhancer(None, is_embedded=True).enhance('red star', seed=1).text}\n"
