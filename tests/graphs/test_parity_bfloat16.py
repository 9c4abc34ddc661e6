"""bfloat16 against diffusers' float32: at most twice what torch itself loses in bfloat16 on the same case."""

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
from tests.tolerances import BFLOAT16_RATIO

CALLS = {
    "square": Call(),
    "padding": Call(prompts=(33,), height=80, width=112),  # pad tokens of image and caption
    "unequal captions": Call(prompts=(12, 75), negatives=(40, 9)),
}

pytestmark = pytest.mark.slow  # its graphs take minutes to compile, and nothing else uses them


@pytest.fixture(params=CALLS.values(), ids=list(CALLS))
def call(request: pytest.FixtureRequest) -> Call:
    return request.param


def check(ours: float, theirs: float, record_property: RecordProperty) -> None:
    record_property("bfloat16_ratio", ours / theirs)
    assert ours <= BFLOAT16_RATIO * theirs, f"{ours:.2e} against torch's {theirs:.2e}"


def test_text_features(call: Call, embedded: Pair, embedded_bfloat16: Pair, record_property: RecordProperty) -> None:
    pair = embedded_bfloat16
    exact = np.concatenate([item.numpy() for item in reference_features(embedded, call)[0]])
    theirs = np.concatenate([item.float().numpy() for item in reference_features(pair, call)[0]])
    captions = features_of(pair.ours, inputs_of(pair.ours, request_of(pair, call)))
    ours = np.concatenate(captions[: len(call.prompts)])
    check(relative_l2(ours, exact), relative_l2(theirs, exact), record_property)


def test_transformer(call: Call, embedded: Pair, embedded_bfloat16: Pair, record_property: RecordProperty) -> None:
    """All get the same features, already rounded."""
    pair = embedded_bfloat16
    branches = reference_features(pair, call)
    inputs = inputs_of(pair.ours, request_of(pair, call, branches))
    features = [item for branch in branches for item in branch]
    latents, timestep = noise(pair, call), float(inputs.schedule.timesteps[2])
    repeated = np.concatenate([latents, latents])
    exact = packed(reference_prediction(embedded, repeated, timestep, [item.float() for item in features]))
    theirs = packed(reference_prediction(pair, repeated, timestep, features))
    ours = OpenTransformer.of(pair.ours, inputs).predict(latents, 2)
    check(relative_l2(ours, exact), relative_l2(theirs, exact), record_property)


def test_final_latents(call: Call, embedded: Pair, embedded_bfloat16: Pair, record_property: RecordProperty) -> None:
    exact = embedded.run_theirs(call).latents[-1]
    theirs = embedded_bfloat16.run_theirs(call).latents[-1]
    ours = embedded_bfloat16.run_ours(call).latents[-1]
    check(relative_l2(ours, exact), relative_l2(theirs, exact), record_property)
