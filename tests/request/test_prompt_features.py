"""Files of features: what is written, what is read, and every kind of file that is refused."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from max_zimage.errors import RequestError, RequestWarning
from max_zimage.images.save import ImageFileError
from max_zimage.request.features_file import FORMAT, MAX_BYTES
from max_zimage.request.prompt_features import MadeBy, PromptFeatures
from tests.request.test_request import LIMITS, make

MADE = MadeBy(
    prompt='a red star, "Grüße"',
    negative_prompt="",
    hidden_layer=((-2, 0.7), (-5, 0.30000000000000004)),
    system_prompt="You\ndraw",
    max_sequence_length=600,
    template="sha256:1",
    tokenizer_digest="sha256:2",
    encoder_digest="sha256:3",
    dtype="bfloat16",
    device="cpu",
    version="0.1.0",
)
NAN = np.full((3, 8), np.nan, np.float32)
RNG = np.random.default_rng(3)


def rows(count: int, width: int = 8) -> np.ndarray:
    return RNG.standard_normal((count, width)).astype(np.float32)


def of(count: int = 5, negative: int | None = 3, **made: Any) -> PromptFeatures:
    found = replace(MADE, **made) if negative is not None else replace(MADE, negative_prompt=None, **made)
    return PromptFeatures(positive=rows(count), negative=None if negative is None else rows(negative), made_by=found)


@pytest.mark.parametrize("negative", [None, 3])
def test_a_file_holds_all_of_them(negative: int | None, tmp_path: Path) -> None:
    """Read back by ourselves, and by the library that others use."""
    features, path = of(negative=negative), tmp_path / "e.safetensors"
    features.save(path)
    again = PromptFeatures.load(path)
    assert again.made_by == features.made_by
    assert again.digest == features.digest
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == {"embeddings", *(["negative_embeddings"] if negative else [])}
        assert np.array_equal(file.get_tensor("embeddings"), features.positive)
        said = file.metadata()
    assert said["format"] == FORMAT
    assert (said["prompt"], said["hidden_layer"]) == (MADE.prompt, "-2:0.7,-5:0.30000000000000004")
    assert (said["tokens"], said["system_prompt"], said["dtype"]) == ("5", "You\ndraw", "bfloat16")
    assert [each.name for each in tmp_path.iterdir()] == ["e.safetensors"]
    with pytest.raises(ImageFileError, match="exists already"):
        features.save(path)
    with pytest.raises(ImageFileError, match=r"ends in \.safetensors"):
        features.save(tmp_path / "e.pt")


def test_bfloat16_is_kept_in_two_bytes_and_nothing_else_is(tmp_path: Path) -> None:
    positive = torch.from_numpy(rows(4)).bfloat16().float().numpy()
    features = PromptFeatures(positive=positive, negative=rows(2))
    features.save(tmp_path / "e.safetensors")
    with safe_open(tmp_path / "e.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    assert {name: each.dtype for name, each in stored.items()} == {
        "embeddings": torch.bfloat16,
        "negative_embeddings": torch.float32,
    }
    assert np.array_equal(stored["embeddings"].float().numpy(), positive)
    assert PromptFeatures.load(tmp_path / "e.safetensors").digest == features.digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("batched", [False, True])
def test_files_of_llm_dit(dtype: torch.dtype, batched: bool, tmp_path: Path) -> None:
    """A tensor alone, of one prompt or a batch of one; its JSON file is looked at, and the tensor believed."""
    tensor, path = torch.from_numpy(rows(6)).to(dtype), tmp_path / "e.safetensors"
    save_file({"embeddings": tensor[None] if batched else tensor}, path)
    with warnings.catch_warnings(action="error"):
        found = PromptFeatures.load(path)
        (tmp_path / "e.json").write_text(json.dumps({"prompt": "a", "sequence_length": 6, "embedding_dim": 8}))
        PromptFeatures.load(path)
    assert found.made_by is None
    assert np.array_equal(found.positive, tensor.float().numpy())
    (tmp_path / "e.json").write_text(json.dumps({"sequence_length": 7, "embedding_dim": 8}))
    with pytest.warns(RequestWarning, match="sequence_length 7, the tensor has 6; the tensor is taken"):
        assert PromptFeatures.load(path).tokens == 6


def bad_tensor(values: torch.Tensor, **more: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: save_file({"embeddings": values, **more}, path)


def changed_header(**said: str) -> Callable[[Path], None]:
    """Ours, with some of what its header says changed; "" takes it out."""

    def write(path: Path) -> None:
        of().save(path)
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        metadata |= said
        save_file(tensors, path, {name: value for name, value in metadata.items() if value})

    return write


BAD_FILES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: path.write_bytes(pickle.dumps({"embeddings": [1.0]})), "is a Python pickle"),
    (lambda path: torch.save(torch.zeros(3, 8), path), "is a Python pickle"),
    (lambda path: path.write_bytes(b""), "is no safetensors file"),
    (lambda path: path.write_bytes(of().to_bytes()[:-1]), "is no safetensors file, or damaged"),
    (lambda path: path.mkdir(), "cannot be read"),
    (lambda path: None, "cannot be read: No such file"),
    (lambda path: path.open("wb").truncate(MAX_BYTES + 1), "features at most"),
    (bad_tensor(torch.zeros(2, 3, 8)), r"must be \[tokens, width\], got \[2, 3, 8\]"),
    (bad_tensor(torch.zeros(8)), r"must be \[tokens, width\], got \[8\]"),
    (bad_tensor(torch.zeros(0, 8)), "must have at least one row"),
    (bad_tensor(torch.full((2, 8), torch.nan)), "must hold finite numbers, got 16"),
    (bad_tensor(torch.full((2, 8), torch.inf, dtype=torch.float16)), "must hold finite numbers, got 16"),
    (bad_tensor(torch.zeros(2, 8, dtype=torch.int32)), "is I32 and must be one of F32, F16, BF16"),
    (bad_tensor(torch.zeros(2, 8, dtype=torch.float8_e4m3fn)), "is F8_E4M3 and must be"),
    (bad_tensor(torch.zeros(2, 8), negative_embeddings=torch.zeros(2, 9)), "has the width 9, and embeddings 8"),
    (bad_tensor(torch.zeros(2, 8), pooled=torch.zeros(8)), "got embeddings, pooled"),
    (lambda path: save_file({"hidden": torch.zeros(2, 8)}, path), "must hold a tensor embeddings"),
    (changed_header(format_version="2"), "has the format version '2'"),
    (changed_header(tokens="7"), "says 7 tokens, and the tensor has 5 rows"),
    (changed_header(encoder_digest="", template=""), "lacks template; its header lacks encoder_digest"),
    (changed_header(hidden_layer="last"), "must be layers with their weights"),
    (changed_header(max_sequence_length="x"), "its header cannot be read"),
]


@pytest.mark.parametrize(("write", "says"), BAD_FILES)
def test_files_that_are_refused(write: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    write(path)
    with pytest.raises(ImageFileError, match=says):
        PromptFeatures.load(path)


def drawn_from(features: Any, **more: Any) -> Any:
    return make(**{"prompt": None, "guidance_scale": 0.0, "features": features} | more)


def test_what_features_were_made_by_is_part_of_the_request() -> None:
    request = drawn_from(of(), guidance_scale=2.0)
    assert (request.prompts, request.negative_prompts) == ((MADE.prompt,), ("",))
    assert (request.hidden_layer, request.system_prompt) == (MADE.hidden_layer, MADE.system_prompt)
    assert request.max_sequence_length == 600
    assert (request.read_prompts, request.read_negatives) == ((), ())
    assert request.is_repeatable
    alone = drawn_from(of(negative=None), guidance_scale=2.0, negative_prompt="dark")
    assert (alone.read_prompts, alone.read_negatives) == ((), ("dark",))
    again = drawn_from(of(), prompt=MADE.prompt, negative_prompt="", hidden_layer=MADE.hidden_layer)
    assert again.prompts == (MADE.prompt,)
    assert not drawn_from(PromptFeatures(positive=rows(3))).is_repeatable


BAD_REQUESTS: list[tuple[dict[str, Any], str, str]] = [
    ({"features": np.zeros(3)}, "features", "features must be PromptFeatures, or a list of them"),
    ({"features": []}, "features", "features must be of 1 to 64 prompts, got 0"),
    (
        {"features": PromptFeatures(positive=rows(3, 4096))},
        "features",
        r"features have the width 4096 \(Qwen3-8B, or T5-XXL\), and this checkpoint takes 8",
    ),
    ({"features": PromptFeatures(positive=rows(LIMITS.max_tokens + 1))}, "features", "have 1505 tokens, at most 1504"),
    ({"features": PromptFeatures(positive=rows(0))}, "features", r"\[tokens, width\], got shape \[0, 8\]"),
    (
        {"features": PromptFeatures(positive=np.full((3, 8), np.nan, np.float32))},
        "features",
        "of finite values, got 24",
    ),
    ({"features": [of(), of(negative=None)]}, "features", "some have features of a negative prompt"),
    (
        {"features": [of(), of(system_prompt="other")]},
        "system_prompt",
        r"were made with several, 'You\\ndraw' and 'other'",
    ),
    ({"features": of(), "prompt": "a cat"}, "prompt", "prompt is 'a cat'.*were made from"),
    ({"features": of(), "negative_prompt": "dark"}, "negative_prompt", "negative_prompt is 'dark'"),
    ({"features": of(), "hidden_layer": -2}, "hidden_layer", "hidden_layer is -2, and features were made with -2:0.7"),
    ({"features": of(), "system_prompt": ""}, "system_prompt", "system_prompt is '', and features were made with 'You"),
    ({"features": of(), "template": "portrait"}, "system_prompt", "and features were made with 'You"),
    ({"features": of(), "max_sequence_length": 512}, "max_sequence_length", "is 512, and features were made with 600"),
    ({"features": of(), "long_prompt_mode": "pool"}, "long_prompt_mode", "is pool, and features were made with refuse"),
    ({"features": PromptFeatures(positive=rows(3)), "prompt": "a"}, "prompt", "do not say what they were made from"),
    ({"features": PromptFeatures(positive=rows(3)), "hidden_layer": -3}, "hidden_layer", "do not say what they were"),
    ({"features": of(), "prompt_embeds": [rows(3)]}, "prompt_embeds", "prompt_embeds and features exclude each other"),
    ({"features": of(), "negative_prompt_embeds": [rows(3)]}, "negative_prompt_embeds", "exclude each other"),
]


@pytest.mark.parametrize(("arguments", "field", "says"), BAD_REQUESTS)
def test_what_does_not_go_with_features(arguments: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(RequestError, match=says) as raised:
        drawn_from(**arguments)
    assert raised.value.problems[0].field == field


def test_everything_wrong_is_said_together() -> None:
    with pytest.raises(RequestError) as raised:
        drawn_from(of(), prompt="a cat", hidden_layer=-3, system_prompt="x", height=17)
    fields = {each.field for each in raised.value.problems}
    assert fields == {"prompt", "hidden_layer", "system_prompt", "height"}
