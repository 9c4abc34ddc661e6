"""Requests with adapters in the worker: each is drawn under its own, and one that cannot be leaves the others alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from max.pipelines.context.exceptions import InputError

from max_zimage.serving.worker.messages import read_failure
from tests.references.diffusers_runs import Pair
from tests.references.loras import STYLE, TEXT, write_adapter
from tests.serving import test_context_tokenizer as contexts
from tests.serving.test_step_scheduler import Worker, alone, assert_same


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "style.safetensors", STYLE, TEXT)
    write_adapter(tmp_path / "other.safetensors", STYLE[1:], seed=2)
    return tmp_path


@pytest.fixture
def worker(embedded: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker whose requests may name the adapters of the folder."""
    tokenizer = contexts.embedded()
    monkeypatch.setattr(tokenizer, "limits", tokenizer.limits.with_lora_folder(folder))
    yield Worker(embedded.ours)
    embedded.ours.set_loras()


def named(name: str, scale: float = 1.0) -> str:
    """As the metadata of MAX's API has it, where all is text."""
    return json.dumps([{"name": f"{name}.safetensors", "scale": scale}])


def test_each_under_its_own(worker: Worker, embedded: Pair, folder: Path) -> None:
    """Those of equal sets share a batch; the oldest that waits goes first."""
    style, other = folder / "style.safetensors", folder / "other.safetensors"
    asked = [
        worker.ask("a red star", loras=named("style", 0.5)),
        worker.ask("a red star", seed=6),
        worker.ask("a blue ring", loras="other.safetensors"),
        worker.ask("a green square", seed=7, loras="style.safetensors:0.5"),
        worker.ask("a red star", loras=named("style", -0.5)),
    ]
    worker.finish()
    assert [worker.steps(each)[0][1] for each in asked] == [2, 1, 1, 2, 1]
    order = list(worker.told)
    assert order == [asked[at].request_id for at in (0, 3, 1, 2, 4)]
    expected = [
        alone(embedded.ours, "a red star", loras=[(style, 0.5)]),
        alone(embedded.ours, "a red star", 6),
        alone(embedded.ours, "a blue ring", loras=[other]),
        alone(embedded.ours, "a green square", 7, loras=[(style, 0.5)]),
        alone(embedded.ours, "a red star", loras=[(style, -0.5)]),
    ]
    for each, pictures in zip(asked, expected, strict=True):
        assert_same(worker.pictures(each), pictures)
    np.testing.assert_array_equal(worker.pictures(asked[1]), expected[1])
    np.testing.assert_array_equal(worker.pictures(asked[4]), expected[4])


def test_a_file_that_is_gone_costs_its_requests_alone(
    worker: Worker, embedded: Pair, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are told why, without the folder's name; the worker goes on with the checkpoint's weights."""
    first, lost = worker.ask("a red star", loras=named("other")), worker.ask("a blue ring", loras=named("style"))
    also = worker.ask("a green square", loras=named("style"))
    after = worker.ask("a red star", seed=6)
    (folder / "style.safetensors").unlink()
    worker.finish()
    for each in (lost, also):
        assert worker.is_cancelled(each)
        failure = read_failure(worker.told[each.request_id][-2].result)
        assert failure is not None
        assert failure.code == "lora_not_applied"
        assert failure.message.startswith("adapters style.safetensors: style.safetensors cannot be read: No such file")
        assert str(folder) in caplog.text  # the log is the owner's
    assert_same(worker.pictures(first), alone(embedded.ours, "a red star", loras=[folder / "other.safetensors"]))
    np.testing.assert_array_equal(worker.pictures(after), alone(embedded.ours, "a red star", 6))


@pytest.mark.parametrize("name", ["style.safetensors", "/style.safetensors", "../style.safetensors"])
def test_who_names_no_folder_has_no_adapters(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As MAX's own server, which has no flag for it: a request may name no file of the machine."""
    monkeypatch.chdir(folder)
    for given in (name, f"{folder}/style.safetensors"):
        with pytest.raises(InputError, match="this server has no adapters"):
            contexts.context("x", contexts.load(contexts.EMBEDDED), metadata={"loras": given})
