"""Requests with adapters in the worker: each is drawn under its own, and one that cannot be leaves the others alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from max.pipelines.context.exceptions import InputError

from max_zimage.checkpoint.adapters import factors
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
def mixing(worker: Worker, embedded: Pair) -> Worker:
    """The same where requests under different adapters may share steps."""
    return Worker(embedded.ours, mix_loras=True)


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


def test_different_adapters_share_steps(mixing: Worker, embedded: Pair, folder: Path) -> None:
    """Each is the picture that it is alone; one of several pictures, and one that is cancelled on the way, too."""
    third = write_adapter(folder / "third.safetensors", STYLE, seed=4).path
    asked = [
        mixing.ask("a red star", loras=named("other", 0.5)),
        mixing.ask("a blue ring", seed=6, num_images=2, loras=named("third", -1.0)),
        mixing.ask("a green square", seed=9),
        mixing.ask("a red ring", seed=2, loras=named("style")),  # of the text encoder, too
    ]
    mixing.turn()
    mixing.turn()
    assert [mixing.steps(each)[0][1] for each in asked[:3]] == [4, 4, 4]
    mixing.cancels.put([asked[0].request_id])
    mixing.finish()
    assert mixing.is_cancelled(asked[0])
    assert mixing.steps(asked[3])[0][1] == 1
    two = alone(embedded.ours, "a blue ring", 6, num_images_per_prompt=2, loras=[(third, -1.0)])
    assert_same(mixing.pictures(asked[1]), two)
    assert_same(mixing.pictures(asked[2]), alone(embedded.ours, "a green square", 9))
    assert_same(mixing.pictures(asked[3]), alone(embedded.ours, "a red ring", 2, loras=[folder / "style.safetensors"]))


def test_equal_adapters_stay_in_the_weights(mixing: Worker, embedded: Pair) -> None:
    asked = [mixing.ask("a red star", loras="other.safetensors"), mixing.ask("a red star", loras="other.safetensors")]
    mixing.finish()
    assert [mixing.steps(each)[0][1] for each in asked] == [2, 2]
    assert [each.name for each in embedded.ours.adapters.loras] == ["other.safetensors"]


def test_what_does_not_fit_beside_the_weights_is_drawn_one_by_one(
    mixing: Worker, embedded: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(factors, "available_memory", lambda: 0)
        asked = [mixing.ask("a red star", loras="other.safetensors"), mixing.ask("a blue ring", seed=6)]
        mixing.finish()
    assert [mixing.steps(each)[-1][1] for each in asked] == [1, 1]
    assert_same(mixing.pictures(asked[0]), alone(embedded.ours, "a red star", loras=[folder / "other.safetensors"]))
    assert_same(mixing.pictures(asked[1]), alone(embedded.ours, "a blue ring", 6))


@pytest.mark.parametrize("name", ["style.safetensors", "/style.safetensors", "../style.safetensors"])
def test_who_names_no_folder_has_no_adapters(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As MAX's own server, which has no flag for it: a request may name no file of the machine."""
    monkeypatch.chdir(folder)
    for given in (name, f"{folder}/style.safetensors"):
        with pytest.raises(InputError, match="this server has no adapters"):
            contexts.context("x", contexts.load(contexts.EMBEDDED), metadata={"loras": given})
