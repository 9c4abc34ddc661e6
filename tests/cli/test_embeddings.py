"""`encode`, and `generate --embeddings`: what is drawn, what the pictures remember, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from max_zimage import PromptFeatures, ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.pipeline import encoder as encoder_module
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.request.metadata import read_parameters
from max_zimage.text.tokenizer import NoTokenizer
from tests.references.diffusers_runs import Pair

PROMPT = "a red star on a blue background"
QUICK = ("--steps", "2", "--height", "64", "--width", "96", "--seed", "3")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def loaded() -> list[CheckedModel]:
    return []


@pytest.fixture
def run(
    embedded: Pair,
    loaded: list[CheckedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """The command line in an empty folder, with components that are there already: exit code, stdout, stderr."""

    def from_prepared(prepared: CheckedModel) -> ZImagePipeline:
        loaded.append(prepared)
        return embedded.ours

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ZImagePipeline, "from_prepared", from_prepared)
    monkeypatch.setattr(encoder_module, "ZImageTextEncoderModel", lambda *_, **__: embedded.ours.text_encoder)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(exit.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def pixels(name: str) -> np.ndarray:
    with Image.open(name) as picture:
        return np.asarray(picture)


def draw(run: Run, *words: str) -> str:
    code, _, err = run("generate", *words)
    assert code == 0, err
    return err


def encode(run: Run, *words: str) -> dict[str, Any]:
    code, out, err = run("encode", *words, "--json", "--quiet")
    assert code == 0, err
    return dict(json.loads(out))


def test_what_is_encoded_is_drawn_and_repeated(run: Run, loaded: list[CheckedModel]) -> None:
    said = encode(run, PROMPT, "--negative", "dark", "--output", "e.safetensors")
    assert (said["tokens"], said["width"], said["negative_tokens"]) == (15, 128, 11)
    assert said["digest"] == PromptFeatures.load("e.safetensors").digest
    draw(run, PROMPT, "--negative", "dark", "--guidance", "2", *QUICK, "--output", "plain.png")
    draw(run, "--embeddings", "e.safetensors", "--guidance", "2", *QUICK, "--output", "a.png")
    assert [isinstance(each.tokenizer, NoTokenizer) for each in loaded] == [False, True]
    np.testing.assert_array_equal(pixels("a.png"), pixels("plain.png"))
    found, plain = read_parameters(Path("a.png")), read_parameters(Path("plain.png"))
    assert (found.prompt, found.negative_prompt, found.features_digest) == (PROMPT, "dark", said["digest"])
    assert plain.features_digest is None

    told = draw(run, "--from", "a.png", "--output", "again.png")
    assert "its prompt is encoded again" in told
    told = draw(run, "--from", "a.png", "--embeddings", "e.safetensors", "--output", "once.png")
    assert "warning" not in told
    for name in ("again.png", "once.png"):
        np.testing.assert_array_equal(pixels(name), pixels("a.png"))
    encode(run, "a white ring", "--negative", "", "--output", "other.safetensors")
    told = draw(run, "--from", "a.png", "--embeddings", "other.safetensors", "--output", "other.png")
    assert "was drawn from other features" in told
    assert read_parameters(Path("other.png")).prompt == "a white ring"


def test_texts_around_the_prompt_are_in_the_file(run: Run) -> None:
    words = ("--system-prompt", "You paint.", "--hidden-layer", "-3", "--max-sequence-length", "200")
    encode(run, PROMPT, *words, "--output", "e.safetensors")
    draw(run, "--embeddings", "e.safetensors", "--guidance", "0", *QUICK, "--output", "a.png")
    draw(run, PROMPT, *words, "--guidance", "0", *QUICK, "--output", "plain.png")
    np.testing.assert_array_equal(pixels("a.png"), pixels("plain.png"))
    found, plain = read_parameters(Path("a.png")), read_parameters(Path("plain.png"))
    for name in ("system_prompt", "hidden_layer", "max_sequence_length", "prompt"):
        assert getattr(found, name) == getattr(plain, name)


def test_a_negative_prompt_wants_the_text_encoder(run: Run, loaded: list[CheckedModel], tmp_path: Path) -> None:
    encode(run, PROMPT, "--output", "e.safetensors")
    draw(run, "--embeddings", "e.safetensors", "--guidance", "2", "--negative", "dark", *QUICK, "--output", "a.png")
    assert not isinstance(loaded[-1].tokenizer, NoTokenizer)
    other = replace(PromptFeatures.load("e.safetensors").made_by, encoder_digest="sha256:0")  # type: ignore[type-var]
    replace(PromptFeatures.load("e.safetensors"), made_by=other).save("other.safetensors")
    told = draw(run, "--embeddings", "other.safetensors", "--guidance", "2", *QUICK, "--output", "other.png")
    assert "--embeddings were made by another text encoder than this checkpoint's" in told
    draw(run, PROMPT, "--guidance", "2", "--negative", "dark", *QUICK, "--output", "plain.png")
    np.testing.assert_array_equal(pixels("a.png"), pixels("plain.png"))
    shutil.copytree(EMBEDDED, tmp_path / "half", ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    words = ("--embeddings", "e.safetensors", "--model", "half", *QUICK)
    code, _, err = run("generate", *words, "--guidance", "2")
    assert code == 2
    assert "--negative: the text encoder is not loaded, and --embeddings have none of the --negative" in err
    assert "set that to 0" in err
    draw(run, *words, "--guidance", "0")


def test_features_that_say_nothing_are_drawn_and_not_remembered(run: Run, embedded: Pair) -> None:
    features = embedded.ours.encode(PROMPT)
    save_file({"embeddings": torch.from_numpy(features.positive)}, "theirs.safetensors")
    draw(run, "--embeddings", "theirs.safetensors", "--guidance", "0", *QUICK, "--output", "a.png")
    draw(run, PROMPT, "--guidance", "0", *QUICK, "--output", "plain.png")
    np.testing.assert_array_equal(pixels("a.png"), pixels("plain.png"))
    code, _, err = run("generate", "--from", "a.png")
    assert code == 2
    assert "parameters" in err


BAD: list[tuple[tuple[str, ...], str]] = [
    (("generate", "--embeddings", "none.safetensors"), "none.safetensors cannot be read: No such file"),
    (("generate", "--embeddings", "e.pt"), "e.pt is a Python pickle"),
    (("generate", "a cat", "--embeddings", "e.safetensors"), "prompt is 'a cat', and --embeddings were made"),
    (("generate", "--embeddings", "e.safetensors", "--hidden-layer", "-3"), "--hidden-layer is -3, and --embeddings"),
    (("generate", "--embeddings", "e.safetensors", "--template", "portrait"), "--system-prompt is "),
    (("generate", "--embeddings", ""), "--embeddings is empty"),
    (("encode", PROMPT, "--output", "e.safetensors"), "e.safetensors exists already"),
    (("encode", PROMPT, "--output", "f.pt"), "features are saved in a file whose name ends in .safetensors"),
    (("encode", PROMPT, "--output", "no/f.safetensors"), "folder no does not exist"),
    (("encode", PROMPT, "--output", "f.safetensors", "--hidden-layer", "99"), "--hidden-layer must be from"),
    (("encode", "x " * 600, "--output", "f.safetensors"), "the prompt has 1208 tokens, at most 512 are allowed"),
    (("encode", PROMPT, "--output", "f.safetensors", "--model", "nowhere"), "no model at nowhere"),
    (("encode", PROMPT), "the following arguments are required: --output"),
]


def test_what_is_refused(run: Run, embedded: Pair, loaded: list[CheckedModel]) -> None:
    embedded.ours.encode(PROMPT).save("e.safetensors")
    torch.save(torch.zeros(3, 128), "e.pt")
    for words, says in BAD:
        code, _, err = run(*words)
        assert (code, says in err) == (2, True), f"{words}: {err}"
    assert not loaded
    assert not Path("f.safetensors").exists()
