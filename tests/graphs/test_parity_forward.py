"""Text features and single evaluations of the transformer against diffusers, in float32.

The transformer gets the reference's own features, so that nothing but the transformer can differ. Every size and
caption length goes through one compiled graph.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.recording import RecordProperty
from tests.references.diffusers_runs import (
    Call,
    Pair,
    noise,
    packed,
    reference_features,
    reference_prediction,
    relative_l2,
)
from tests.references.engine_runs import OpenTransformer, features_of, inputs_of, request_of
from tests.tolerances import FEATURES_L2, TRANSFORMER_L2

MODELS = ["embedded", "tiny64", "tiny128"]

CALLS = {
    "square": Call(),
    # 36, 48 and 35 image tokens: 28, 16 and 29 learned pad tokens, which are attended.
    "image padding": Call(height=96, width=96),
    "image padding, wide": Call(height=96, width=128),
    "image padding, odd sides": Call(height=80, width=112),
    "wide": Call(height=32, width=256),
    "tall": Call(height=256, width=48),
    # Around the multiple of 32 that captions are padded to; with and without caption padding.
    "caption of 31": Call(prompts=(31,), negatives=(31,)),
    "caption of 32": Call(prompts=(32,), negatives=(32,)),
    "caption of 33": Call(prompts=(33,), negatives=(33,)),
    "caption of 64": Call(prompts=(64,), negatives=(64,)),
    "caption of 100": Call(prompts=(100,), negatives=(100,)),
    "caption of 1": Call(feature_rows=(1,), negative_feature_rows=(1,)),
    # Captions of unequal padded length in one batch: the shorter ones are masked, and image padding must not be.
    "longer prompt": Call(prompts=(40,), height=80, width=112),
    "longer negative": Call(negatives=(70,), height=80, width=112),
    "two prompts, two negatives": Call(prompts=(12, 75), negatives=(40, 9)),
    "equal but not in length": Call(prompts=(33, 64), negatives=(40, 50)),
    "features of unequal length": Call(feature_rows=(1, 65), negative_feature_rows=(32, 33)),
    "several pictures a prompt": Call(prompts=(12, 40), negatives=(9, 9), copies=2),
    "no guidance": Call(prompts=(12, 40), guidance=0.0),
}
INTERESTING = ["square", "image padding, odd sides", "caption of 1", "caption of 33", "two prompts, two negatives"]
"""Of the random models: they differ in weights and shapes, and layout is the same code."""

CASES = [(model, name) for model in MODELS for name in CALLS if model == "embedded" or name in INTERESTING]


@pytest.mark.parametrize("model", MODELS)
def test_the_models_show_what_engines_drop(model: str, request: pytest.FixtureRequest) -> None:
    """Pad tokens that are zero, or norms that are one, would hide an engine that leaves them out."""
    weights = request.getfixturevalue(model).theirs.transformer.state_dict()
    for name in ("x_pad_token", "cap_pad_token"):
        assert weights[name].abs().mean() > 1e-3, name
    for name in ("cap_embedder.0.weight", "layers.0.attention.norm_q.weight", "layers.1.ffn_norm2.weight"):
        assert weights[name].std() > 1e-3, name


@pytest.mark.parametrize("model", MODELS)
def test_text_features(model: str, request: pytest.FixtureRequest, record_property: RecordProperty) -> None:
    """All lengths in one batch, so that padding at the end of a row is seen to reach nothing before it."""
    pair: Pair = request.getfixturevalue(model)
    call = Call(prompts=("a red star on a blue background", 31, 32, 33, 64, 100, 500), negatives=("",) * 7)
    ours = features_of(pair.ours, inputs_of(pair.ours, request_of(pair, call)))
    positive, negative = reference_features(pair, call)
    expected = [*positive, negative[0]]  # the empty prompt is encoded once
    assert len(ours) == len(expected)
    errors = [relative_l2(actual, wanted.numpy()) for actual, wanted in zip(ours, expected, strict=True)]
    record_property("relative_l2", max(errors))
    assert max(errors) <= FEATURES_L2


@pytest.mark.parametrize(("model", "name"), CASES, ids=lambda value: value.replace(" ", "_").replace(",", ""))
def test_transformer(model: str, name: str, request: pytest.FixtureRequest, record_property: RecordProperty) -> None:
    """At the first, a middle and the last timestep of a schedule; the worst item counts."""
    pair: Pair = request.getfixturevalue(model)
    call = CALLS[name]
    positive, negative = reference_features(pair, call)
    inputs = inputs_of(pair.ours, request_of(pair, call, (positive, negative)))
    transformer = OpenTransformer.of(pair.ours, inputs)
    features = [item for branch in (positive, negative) for item in branch for _ in range(call.copies)]
    latents = noise(pair, call)
    errors = []
    for step in (0, 2, 3):
        ours = transformer.predict(latents, step)
        repeated = np.concatenate([latents] * (len(features) // len(latents)))
        theirs = reference_prediction(pair, repeated, float(inputs.schedule.timesteps[step]), features)
        errors += [relative_l2(*items) for items in zip(ours, packed(theirs), strict=True)]
    record_property("relative_l2", max(errors))
    assert max(errors) <= TRANSFORMER_L2
