"""Requests with adapters in the worker: each is drawn under its own, and one that cannot be leaves the others alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from max.pipelines.context.exceptions import InputError

from max_zimage.checkpoint.adapters import factors
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.serving.worker.messages import read_failure
from max_zimage.serving.worker.prompt_features import read_features
from tests.references.diffusers_runs import Pair
from tests.references.loras import STYLE, TEXT, write_adapter
from tests.serving import test_context_tokenizer as contexts
from tests.serving.test_features_served import given
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


def test_who_fits_the_first_stays_with_it(
    mixing: Worker, embedded: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where adapters cannot be mixed, it is as if they never were: set by set, and not one by one."""
    with monkeypatch.context() as full:
        full.setattr(factors, "available_memory", lambda: 0)
        names = ("other.safetensors", "other.safetensors", None, None)
        asked = [mixing.ask("a red star", seed=seed, loras=name) for seed, name in enumerate(names)]
        mixing.finish()
    assert [mixing.steps(each)[-1][1] for each in asked] == [2, 2, 2, 2]
    assert caplog.text.count("cannot be mixed") == 1
    assert_same(mixing.pictures(asked[3]), alone(embedded.ours, "a red star", 3))


def test_steps_need_memory_beside_adapters(
    mixing: Worker, embedded: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise NotEnoughMemoryError("this picture needs 2 GB, 1 GB is available")

    with monkeypatch.context() as patched:
        patched.setattr(embedded.ours.residency, "check", full)
        asked = [mixing.ask("a red star", loras="other.safetensors"), mixing.ask("a blue ring", seed=6)]
        mixing.finish()
    assert [mixing.steps(each)[-1][1] for each in asked] == [1, 1]
    assert_same(mixing.pictures(asked[0]), alone(embedded.ours, "a red star", loras=[folder / "other.safetensors"]))


def test_features_are_those_of_nobody_else(worker: Worker, embedded: Pair, folder: Path) -> None:
    """Texts beside features, and features that are asked for, do not see the adapters of what was drawn before."""
    ours, style = embedded.ours, [folder / "style.safetensors"]
    features, both = ours.encode("a blue ring"), ours.encode("a blue ring", negative_prompt="dark")
    before = worker.ask("a red star", loras=named("style"))
    plain = given(worker, features, "a blue ring", seed=6, negative_prompt="dark")
    own = given(worker, features, "a blue ring", seed=7, negative_prompt="dark", loras=named("style"))
    asked = worker.ask("a blue ring", negative_prompt="dark")
    asked.encodes = [ours.tokenizer.template_digest, ours.tokenizer.digest]
    worker.finish()
    assert read_features(worker.told[asked.request_id][-1].result).digest == both.digest
    assert_same(worker.pictures(before), alone(ours, "a red star", loras=style))
    assert_same(worker.pictures(plain), alone(ours, "a blue ring", 6, negative_prompt="dark"))
    drawn: Any = {"features": features, "negative_prompt": "dark", "guidance_scale": 2.0, "num_inference_steps": 3}
    drawn |= {"height": 128, "width": 128, "seed": 7, "output_type": "np"}
    assert_same(worker.pictures(own), list(np.asarray(ours(loras=style, **drawn))))
    assert ours.encode("a blue ring").digest == features.digest


@pytest.mark.parametrize("name", ["style.safetensors", "/style.safetensors", "../style.safetensors"])
def test_who_names_no_folder_has_no_adapters(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As MAX's own server, which has no flag for it: a request may name no file of the machine."""
    monkeypatch.chdir(folder)
    for name_or_path in (name, f"{folder}/style.safetensors"):
        with pytest.raises(InputError, match="this server has no adapters"):
            contexts.context("x", contexts.load(contexts.EMBEDDED), metadata={"loras": name_or_path})
