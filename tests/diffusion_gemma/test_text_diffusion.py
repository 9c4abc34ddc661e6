"""Texts of the embedded model: prompts, seeds, lengths, drafts, and what is refused before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from max_zimage import embedded
from max_zimage.diffusion_gemma.prepared import prepare_text
from max_zimage.diffusion_gemma.text_diffusion import TextDiffusion, TextDraft
from max_zimage.errors import CheckpointError, RequestError
from tests.references.text_diffusions import in_pytorch

PROMPTS = ["red star", "blue circle green ring", "", "square above a cross on black"]


@pytest.fixture(scope="module")
def model() -> TextDiffusion:
    return in_pytorch(prepare_text())


def test_a_text_is_its_seeds_alone(model: TextDiffusion) -> None:
    """The same one in a batch and alone; k of several has the seed behind the first's."""
    together = model.generate(PROMPTS, seed=5)
    assert [each.seed for each in together] == [5, 6, 7, 8]
    assert model.generate(PROMPTS[3], seed=8) == together[3]
    assert model.generate(PROMPTS[0], seed=5) == together[0]
    assert len({each.text for each in model.generate([""] * 4, seed=1)}) == 4
    drawn = model.generate("star")
    assert model.generate("star", seed=drawn.seed) == drawn


def test_a_result_says_how_it_came_about(model: TextDiffusion) -> None:
    drafts: list[TextDraft] = []
    found = model.generate("red star", seed=3, on_draft=drafts.append)
    assert found.ended
    assert (found.canvases, found.steps, found.prompt_tokens) == (1, len(drafts), 4)
    assert [draft.step for draft in drafts] == list(range(1, found.steps + 1))
    assert {(draft.row, draft.canvas, draft.num_steps) for draft in drafts} == {(0, 1, 48)}
    assert drafts[-1].text == found.text
    assert drafts[-1].settled
    assert found.tokens_per_step == (len(found.token_ids) + 1) / found.steps


def test_lengths(model: TextDiffusion) -> None:
    """Cut where it was asked for, in the middle of a canvas or behind one, and said so."""
    whole = model.generate("red star", seed=3)
    cut = model.generate("red star", seed=3, max_new_tokens=4)
    assert cut.token_ids == whole.token_ids[:4]
    assert not cut.ended
    just = model.generate("red star", seed=3, max_new_tokens=len(whole.token_ids))
    assert (just.token_ids, just.ended) == (whole.token_ids, True)
    assert model.generate("red star", seed=3, max_new_tokens=40) == whole
    one = model.generate("red star", seed=3, num_denoising_steps=1)
    assert one.steps == 1


@pytest.mark.parametrize(
    ("prompt", "asked", "message"),
    [
        ("star", {"seed": -1}, "seed must be from 0 to"),
        ("star", {"t_max": 0.1}, "t_max must be above t_min, got 0.1 and"),
        (7, {}, "prompt must be a text, or a list of at least one, got 7"),
        ([], {}, r"prompt must be a text, or a list of at least one, got \[\]"),
        (["star", 7], {}, "prompt must be a string, got 7"),
        (
            "star " * 1100,
            {},
            "prompt has 1102 tokens, and one canvas of 16 must have room behind it: .* has 1024 positions; shorten it",
        ),
        ("star", {"max_new_tokens": 1024}, "3 tokens and 64 canvases of 16 need 1027 .*; ask for at most 1008"),
    ],
)
def test_what_is_refused(model: TextDiffusion, prompt: Any, asked: dict[str, Any], message: str) -> None:
    def computed(draft: TextDraft) -> None:
        raise AssertionError("something was computed")

    with pytest.raises(RequestError, match=message):
        model.generate(prompt, on_draft=computed, **asked)


def test_all_that_is_wrong_is_said_together() -> None:
    prepared = prepare_text()
    with pytest.raises(RequestError, match="the request has 4 problems") as refused:
        prepared.request(["star", cast(Any, 7)], -1, t_max=0, max_new_tokens=1024)
    assert [problem.field for problem in refused.value.problems] == ["t_max", "seed", "prompt", "max_new_tokens"]
    with pytest.raises(RequestError, match="the request has 2 problems"):
        prepared.request(["star"], 1, t_max=0.1, max_new_tokens=1024)


def test_room_is_what_a_prompt_leaves() -> None:
    prepared = prepare_text()
    assert prepared.room("star") == 1008
    assert prepared.request(["star"], 1, max_new_tokens=1008).lengths.tolist() == [3]
    assert prepared.room("star " * 1100) == 0


def test_an_unknown_number_is_refused(model: TextDiffusion) -> None:
    with pytest.raises(TypeError, match="no number of a text is called temperature; those are max_new_tokens, num"):
        model.generate("star", temperature=0.5)  # type: ignore[call-overload]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The embedded checkpoint, to be spoiled."""
    return Path(shutil.copytree(embedded.TEXT_PATH, tmp_path / "model"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r'no text model at .*, or "embedded" for the one that comes with'):
        prepare_text(tmp_path / "nothing")


def test_either_name_is_the_embedded_model() -> None:
    assert prepare_text("embedded").directory == prepare_text("tiny-diffusion-gemma").directory == embedded.TEXT_PATH


def test_image_tokens_are_refused(copied: Path) -> None:
    tokenizer = prepare_text(copied).tokenizer
    change(copied / "config.json", image_token_id=int(tokenizer.encode("star")[1]))
    with pytest.raises(RequestError, match="stands for an image, and this engine reads text only"):
        prepare_text(copied).request(["star"], 1)
    assert prepare_text(copied).request(["ring"], 1).lengths.tolist() == [3]


def test_a_tokenizer_without_a_template_gives_prompts_as_they_are(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    prepared = prepare_text(copied)
    (ids,) = prepared.request(["a red star"], 1).ids
    assert prepared.tokenizer.decode(ids.tolist()) == "a red star"
    with pytest.raises(RequestError, match='prompt makes no token, got ""; write a word'):
        prepared.request([""], 1)


def test_damaged_tokenizers(copied: Path) -> None:
    whole = (copied / "tokenizer.json").read_text()
    (copied / "tokenizer.json").write_text(whole[:100])
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        prepare_text(copied)
    (copied / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        prepare_text(copied)


def test_a_tokenizer_of_more_tokens_than_the_model_knows(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    change(copied / "config.json", text_config=config["text_config"] | {"vocab_size": 400, "pad_token_id": 1})
    with pytest.raises(CheckpointError, match="has tokens up to 407, and the model knows 400"):
        prepare_text(copied)


def test_prompts_are_tokenized_as_transformers_does() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(embedded.TEXT_PATH)
    prepared = prepare_text()
    for prompt in [*PROMPTS, "  Rde stra.  ", "<|im_end|>"]:
        wanted = theirs.apply_chat_template([{"role": "user", "content": prompt}], return_dict=False)
        np.testing.assert_array_equal(prepared.tokenizer.encode(prompt), wanted)
