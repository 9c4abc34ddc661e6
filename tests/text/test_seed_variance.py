"""Seed variance: a share of the features moved by the picture's own seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from max_zimage.pipeline.captions import float_features
from max_zimage.pipeline.features import FeatureChange
from tests.references.diffusers_runs import Pair, relative_l2
from tests.tolerances import SAMPLED_L2

ASKED: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}


@pytest.mark.parametrize(("strength", "share"), [(0.1, 0.5), (1.0, 0.2), (2.0, 1.0), (0.3, 0.0)])
def test_a_share_is_moved_by_so_much(strength: float, share: float) -> None:
    features = np.random.default_rng(1).normal(3, 5, (400, 64)).astype(np.float32)
    change = FeatureChange(rows=1504, strength=strength, share=share, seed=7)
    moved = change(features).astype(np.float64) - features
    assert np.mean(moved != 0) == pytest.approx(share, abs=0.01)
    if share:
        scaled = moved[moved != 0] / (strength * features.std(ddof=1))
        assert np.abs(scaled).max() <= 1.0001
        assert (scaled.mean(), scaled.std()) == pytest.approx((0, 3**-0.5), abs=0.03)
    np.testing.assert_array_equal(change(features), change(features))
    other = FeatureChange(rows=1504, strength=strength, share=share, seed=8)(features)
    assert (share == 0) == np.array_equal(other, change(features))


def test_known_numbers() -> None:
    """The same bits on every machine."""
    found = FeatureChange(rows=9, strength=1.0, share=0.5, seed=3)(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_allclose(found, KNOWN, rtol=1e-6)


KNOWN = [[-1.523907, 1.0, 1.51762], [2.649179, 3.475952, 5.0]]


def test_every_picture_has_its_own_and_one_alone_is_the_same(embedded: Pair) -> None:
    pipeline: Any = embedded.ours
    asked = {**ASKED, "guidance_scale": 2.0, "negative_prompt": "blue", "seed_variance": 0.5}
    two = np.asarray(pipeline(["a red star", "a ring"], seed=4, num_images_per_prompt=2, **asked))
    for picture, prompt in enumerate(("a red star", "a red star", "a ring", "a ring")):
        alone = np.asarray(pipeline(prompt, seed=4 + picture, **asked))
        assert relative_l2(two[picture : picture + 1], alone) <= SAMPLED_L2
    plain = np.asarray(pipeline("a red star", seed=4, **{**asked, "seed_variance": 0.0}))
    assert relative_l2(two[:1], plain) > 1e-3


def test_features_are_moved_whichever_way_they_come(embedded: Pair) -> None:
    pipeline: Any = embedded.ours
    ids, negative = (pipeline.tokenizer.encode(text) for text in ("a red star", "blue"))
    encode = pipeline.text_encoder
    given = [float_features(encode, encode([each]))[0][: len(each)] for each in (ids, negative)]
    asked = {**ASKED, "guidance_scale": 2.0, "seed": 6}
    drawn = np.asarray(pipeline("a red star", negative_prompt="blue", seed_variance=0.5, **asked))
    by_features = pipeline(prompt_embeds=given[:1], negative_prompt_embeds=given[1:], seed_variance=0.5, **asked)
    assert relative_l2(np.asarray(by_features), drawn) <= SAMPLED_L2
    moved = FeatureChange(rows=1504, strength=0.5, share=0.5, seed=6)(given[0])
    by_hand = pipeline(prompt_embeds=[moved], negative_prompt_embeds=given[1:], **asked)
    assert relative_l2(np.asarray(by_hand), drawn) <= SAMPLED_L2
