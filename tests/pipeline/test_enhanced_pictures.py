"""Pictures of prompts that were written out are those of what was written, and remember both."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from max_zimage.enhancer.settings import EnhancerError
from max_zimage.errors import RequestError, RequestWarning
from max_zimage.request.metadata import read_parameters
from tests.references.chat_stub import Silk
from tests.references.diffusers_runs import Pair

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}


def test_they_are_drawn_from_what_was_written(embedded: Pair, tmp_path: Path) -> None:
    pipe, silk = embedded.ours, Silk()
    whole = ["a star on silk", "a ring on silk"]
    expected = pipe(whole, **SMALL, seed=4, guidance_scale=2.0, negative_prompt="blurred", output_type="np")
    asked: dict[str, Any] = {**SMALL, "seed": 4, "guidance_scale": 2.0, "negative_prompt": "blurred", "enhance": True}
    found = pipe(["a star", "a ring"], **asked, enhancer=silk, output_type="np")
    np.testing.assert_array_equal(found, expected)
    assert silk.asked == [("a star", 4), ("a ring", 4)]
    with pytest.raises(ValueError, match="holds 2 pictures"):
        found.save(tmp_path / "two.png")
    pictures = pipe("a star", **SMALL, seed=4, enhance=True, enhance_seed=9, enhancer=silk)
    pictures.save(tmp_path / "star.png")
    assert silk.asked[-1] == ("a star", 9)
    kept = read_parameters(tmp_path / "star.png")
    assert (kept.prompt, kept.original_prompt, kept.enhanced_by) == ("a star on silk", "a star", "silk")
    again: Any = pipe(kept.prompt, **SMALL, seed=kept.seed, original_prompt="a star", enhanced_by="silk")
    np.testing.assert_array_equal(np.asarray(again[0]), np.asarray(pictures[0]))
    assert again.parameters[0] == kept


def test_a_prompt_that_is_not_written_out_is_drawn_with_a_warning(embedded: Pair) -> None:
    pipe = embedded.ours
    expected = pipe("fail", **SMALL, seed=4, output_type="np")
    with pytest.warns(RequestWarning, match="the prompt is drawn as it was given: silk has no thread left"):
        found: Any = pipe("fail", **SMALL, seed=4, enhance=True, enhancer=Silk())
    np.testing.assert_array_equal(np.asarray(found[0]), expected[0])
    assert found.parameters[0] is not None
    assert (found.parameters[0].original_prompt, found.parameters[0].enhanced_by) == ("", "")


def test_the_pipeline_may_have_one(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    silk = Silk()
    monkeypatch.setattr(embedded.ours, "enhancer", silk)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written: Any = embedded.ours("a star", **SMALL, seed=1, enhance=True)
        given: Any = embedded.ours("a star", **SMALL, seed=1)
    assert [each.parameters[0].prompt for each in (written, given)] == ["a star on silk", "a star"]
    assert len(silk.asked) == 1


def test_what_cannot_be(embedded: Pair) -> None:
    pipe = embedded.ours
    with pytest.raises(TypeError, match="enhancer does nothing without enhance=True; give that too, or leave it out"):
        pipe("a star", **SMALL, enhancer=Silk())
    with pytest.raises(EnhancerError, match="there is no enhancer 'no/such/folder'"):
        pipe("a star", **SMALL, enhance=True, enhancer="no/such/folder")
    with pytest.raises(TypeError, match="must be an Enhancer, EnhancerSettings or a name, got int"):
        pipe("a star", **SMALL, enhance=True, enhancer=7)
    with pytest.raises(RequestError, match="enhance writes a prompt out, and features are given in its place"):
        pipe(features=pipe.encode("a star"), **SMALL, enhance=True, enhancer=Silk())
