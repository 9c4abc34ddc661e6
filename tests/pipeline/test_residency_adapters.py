"""Components that take turns in memory, under adapters."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from max_zimage import ZImagePipeline
from max_zimage.pipeline.bound_adapters import NotApplied
from max_zimage.serving.worker.messages import read_failure
from tests.pipeline.test_residency import draw
from tests.pipeline.test_residency import turns as turns
from tests.references.diffusers_runs import Pair
from tests.references.loras import STYLE, TEXT, write_adapter
from tests.serving import test_context_tokenizer as contexts
from tests.serving.test_step_scheduler import Worker, alone, assert_same


def test_adapters_are_kept_by_components_that_are_away(turns: ZImagePipeline, embedded: Pair, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "style.safetensors", STYLE, TEXT)
    with_adapter = draw(turns, "adapted", loras=[(adapter.path, 1.0)])
    try:
        np.testing.assert_array_equal(with_adapter, draw(embedded.ours, "adapted", loras=[(adapter.path, 1.0)]))
    finally:
        without = draw(embedded.ours, "adapted")
    assert (with_adapter != without).any()
    np.testing.assert_array_equal(draw(turns, "adapted"), without)


def test_an_adapter_that_changed_meanwhile_is_not_read(turns: ZImagePipeline, embedded: Pair, tmp_path: Path) -> None:
    """A component that comes back looks; what was asked for is refused once, and nothing of the adapter stays."""
    adapter = write_adapter(tmp_path / "style.safetensors", STYLE, TEXT)
    turns.set_loras([adapter.path])
    try:
        draw(turns, "before it changed")
        os.utime(adapter.path, ns=(1, 1))
        with pytest.raises(NotApplied, match=r"adapters style.safetensors: .* was changed after it was opened"):
            draw(turns, "after it changed")
        assert turns.adapters.loras == ()
        assert (turns.text_encoder.transforms, turns.transformer.transforms) == ((), ())
        again = draw(turns, "after it changed")  # it is opened again, and has the same numbers
    finally:
        turns.set_loras()
    try:
        expected = draw(embedded.ours, "after it changed", loras=[adapter.path])
    finally:
        without = draw(embedded.ours, "after it changed")
    np.testing.assert_array_equal(again, expected)
    np.testing.assert_array_equal(draw(turns, "after it changed"), without)


def test_a_server_says_of_which_adapter_it_is_true(
    turns: ZImagePipeline, embedded: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text encoder comes back for a new prompt and finds the file changed; whoever asked for it is told."""
    adapter = write_adapter(tmp_path / "style.safetensors", STYLE, TEXT)
    tokenizer = contexts.embedded()
    monkeypatch.setattr(tokenizer, "limits", tokenizer.limits.with_lora_folder(tmp_path))
    worker = Worker(turns)
    first = worker.ask("served before it changed", loras=adapter.path.name)
    worker.finish()
    assert not worker.is_cancelled(first)
    os.utime(adapter.path, ns=(1, 1))
    lost, after = worker.ask("served after it changed", loras=adapter.path.name), worker.ask("served without", seed=6)
    worker.finish()
    assert worker.is_cancelled(lost)
    failure = read_failure(worker.told[lost.request_id][-2].result)
    assert failure is not None
    assert failure.code == "lora_not_applied"
    assert failure.message.startswith("adapters style.safetensors: style.safetensors was changed after it was opened")
    assert turns.adapters.loras == ()
    assert_same(worker.pictures(after), alone(embedded.ours, "served without", 6))
