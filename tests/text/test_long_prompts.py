"""Too many features made fewer: known vectors, torch's functions, and whole pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from max_zimage.errors import RequestError
from max_zimage.pipeline.captions import float_features
from max_zimage.request.modes import LONG_PROMPT_MODES, REFUSE
from max_zimage.text.long_prompts import attention_pool, compressed
from max_zimage.text.tokenizer import Around
from tests.references.diffusers_runs import Pair, relative_l2
from tests.tolerances import SAMPLED_L2

SEVEN = np.asarray([(1, 0), (0.8, 0.6), (0, 1), (0, 2), (-1, 1), (1, 1), (3, 1)], np.float32)
VECTORS: dict[str, list[tuple[float, float]]] = {
    "truncate": [(1, 0), (0.8, 0.6), (0, 1)],
    "interpolate": [(1, 0), (0, 2), (3, 1)],
    "pool": [(0.6, 0.53333), (-0.33333, 1.33333), (1, 1)],
    "attention_pool": [(0.619358, 0.498301), (-0.625229, 1.374771), (2.153887, 1)],
}
AS_SHIPPED: list[tuple[float, float]] = [(0.849963, 0.314854), (-0.885666, 1.114334), (2.124999, 1)]
LONGEST = 1504


def random_features(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 24)).astype(np.float32)


@pytest.mark.parametrize("mode", VECTORS)
def test_seven_rows_become_three(mode: str) -> None:
    np.testing.assert_allclose(compressed(mode, SEVEN, 3), VECTORS[mode], atol=2e-5)


def test_weights_as_llm_dit_has_them() -> None:
    np.testing.assert_allclose(attention_pool(SEVEN, 3, as_shipped=True), AS_SHIPPED, atol=2e-6)


@pytest.mark.parametrize(("count", "rows"), [(1505, 1504), (2048, 1504), (3009, 1504), (50, 7), (9, 8), (5, 1)])
def test_interpolation_and_pooling_are_torchs(count: int, rows: int) -> None:
    features = random_features(count)
    columns = torch.from_numpy(features.astype(np.float64)).T[None]
    linear = torch.nn.functional.interpolate(columns, size=rows, mode="linear", align_corners=True)[0].T
    np.testing.assert_allclose(compressed("interpolate", features, rows), linear, atol=1e-6)
    pooled = torch.nn.functional.adaptive_avg_pool1d(columns, rows)[0].T
    np.testing.assert_allclose(compressed("pool", features, rows), pooled, atol=1e-6)


@pytest.mark.parametrize("mode", LONG_PROMPT_MODES)
def test_few_enough_stay_as_they_are(mode: str) -> None:
    features = random_features(12)
    assert compressed(mode, features, 12) is features
    if mode != REFUSE:
        assert compressed(mode, features, 11).shape == (11, 24)
        assert np.isfinite(compressed(mode, np.zeros((12, 24), np.float32), 5)).all()
    else:
        with pytest.raises(ValueError, match="features of 12 rows must become 11, and 'refuse' is no way to do it"):
            compressed(mode, features, 11)


def prompt_of(pair: Pair, tokens: int) -> str:
    """A prompt of some words that is longer than the transformer has positions for."""
    words = ["red star", "blue ring", "green square"]
    text, at = "a picture", 0
    while len(pair.ours.tokenizer.encode(text)) < tokens:
        text, at = f"{text} of a {words[at % 3]}", at + 1
    return text


ASKED: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 3, "seed": 2, "output_type": "latent"}


@pytest.mark.parametrize("mode", [mode for mode in LONG_PROMPT_MODES if mode != REFUSE])
def test_a_long_prompt_is_drawn_as_its_features_are(mode: str, embedded: Pair) -> None:
    """Beside a short negative prompt, whose features are left alone."""
    pipeline, prompt = embedded.ours, prompt_of(embedded, 1600)
    ids = pipeline.tokenizer.encode(prompt)
    assert LONGEST < len(ids) < 2048
    encoder = pipeline.text_encoder
    long, short = (float_features(encoder, encoder([each]))[0] for each in (ids, pipeline.tokenizer.encode("blue")))
    features = compressed(mode, long[: len(ids)], LONGEST)
    negative = short[: len(pipeline.tokenizer.encode("blue"))]
    expected = pipeline(prompt_embeds=[features], negative_prompt_embeds=[negative], guidance_scale=2.0, **ASKED)
    drawn = pipeline(prompt, negative_prompt="blue", guidance_scale=2.0, long_prompt_mode=mode, **ASKED)
    assert relative_l2(np.asarray(drawn), np.asarray(expected)) <= SAMPLED_L2


def test_a_prompt_that_fits_is_the_same_in_every_mode(embedded: Pair) -> None:
    """Also one beyond 512 tokens, which max_sequence_length would have to be raised for."""
    prompt = prompt_of(embedded, 600)
    expected = embedded.ours(prompt, max_sequence_length=700, **ASKED)
    for mode in ("truncate", "pool"):
        np.testing.assert_array_equal(embedded.ours(prompt, long_prompt_mode=mode, **ASKED), expected)


def test_what_is_too_long_is_refused(embedded: Pair) -> None:
    with pytest.raises(RequestError, match="at most 512 are allowed; shorten it or raise max_sequence_length"):
        embedded.ours(prompt_of(embedded, 600), **ASKED)
    with pytest.raises(RequestError, match=r"the text encoder reads at most 2048; shorten it"):
        embedded.ours(prompt_of(embedded, 2049), long_prompt_mode="pool", **ASKED)


def test_parentheses_and_weights_are_text(embedded: Pair) -> None:
    tokenizer, text = embedded.ours.tokenizer, "a (red:1.2) ((star)) on [blue]"
    assert f"\n{text}<" in tokenizer.render(text)
    words = tokenizer._tokenizer.decode(tokenizer.encode(text).tolist(), skip_special_tokens=False)
    assert text in words


def test_what_stands_around_a_prompt_is_seen_and_not_by_negative_prompts(embedded: Pair) -> None:
    pipeline: Any = embedded.ours
    asked = {**ASKED, "guidance_scale": 2.0, "negative_prompt": "blue"}
    system = {"system_prompt": "You draw a red star."}
    ids = pipeline.tokenizer.encode("a star", Around(system=system["system_prompt"]))
    features = [float_features(pipeline.text_encoder, pipeline.text_encoder([each]))[0][: len(each)] for each in (
        ids, pipeline.tokenizer.encode("blue")
    )]  # fmt: skip
    expected = pipeline(
        prompt_embeds=features[:1], negative_prompt_embeds=features[1:], **{**ASKED, "guidance_scale": 2.0}
    )
    drawn = np.asarray(pipeline("a star", **asked, **system))
    assert relative_l2(drawn, np.asarray(expected)) <= SAMPLED_L2
    assert relative_l2(drawn, np.asarray(pipeline("a star", **asked))) > 1e-3
    with pytest.raises(RequestError, match="system_prompt stands around a prompt, and prompt_embeds are given"):
        pipeline(prompt_embeds=features[:1], **ASKED, **system)
