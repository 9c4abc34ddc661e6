"""Parity stage by stage: a failure names the first stage that diverges, and one that was planted is found."""

from __future__ import annotations

import re

import numpy as np
import pytest

from max_zimage.pipeline.batch import caption_arguments
from tests.references.diffusers_runs import Call, Pair
from tests.references.stages import Stages, assert_same, engine_stages, reference_stages
from tests.tolerances import STAGES_L2

# Four captions of unequal padded length, and pad tokens of image and captions: all that the layout can get wrong.
CALL = Call(prompts=(12, 40), negatives=(75, 9), height=80, width=112, steps=4)


@pytest.fixture(scope="module", params=["embedded", "tiny64", "tiny128"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def theirs(pair: Pair) -> Stages:
    return reference_stages(pair, CALL)


def test_every_stage_is_the_reference(pair: Pair, theirs: Stages) -> None:
    assert_same(engine_stages(pair, CALL), theirs, STAGES_L2)


@pytest.mark.parametrize(
    "stage", ["tokens", "features", "caption tokens", "block 0", "prediction", "step 1", "step 3", "pixels"]
)
def test_a_planted_error_is_named(stage: str, theirs: Stages) -> None:
    """One value in a stage is off, and everything after it is off too, as it would be."""
    start = [name for name, _ in theirs].index(stage)
    ours = [(name, value.copy()) for name, value in theirs]
    for _, value in ours[start:]:
        value.flat[0] = value.flat[0] ^ 128 if value.dtype == np.uint8 else value.flat[0] + 1
    named = f"the first stage that diverges is {re.escape(stage)}: max abs 1"
    with pytest.raises(AssertionError, match=named) as raised:
        assert_same(ours, theirs, STAGES_L2)
    assert "mean abs" in str(raised.value)
    assert "cosine" in str(raised.value)


def test_no_number_diverges_and_so_does_another_shape() -> None:
    theirs = [("tokens", np.arange(4.0)), ("pixels", np.arange(4.0))]
    nan = [theirs[0], ("pixels", np.array([0.0, 1.0, np.nan, 3.0]))]
    with pytest.raises(AssertionError, match="diverges is pixels: max abs nan"):
        assert_same(nan, theirs, STAGES_L2)
    with pytest.raises(AssertionError, match=r"diverges is tokens \(shapes \(3,\) and \(4,\)\)"):
        assert_same([("tokens", np.arange(3.0)), theirs[1]], theirs, STAGES_L2)
    with pytest.raises(ValueError, match="stages differ"):
        assert_same(theirs[:1], theirs, STAGES_L2)


def test_a_real_fault_is_found_where_it_is(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions whose pad tokens are counted as captions: the first wrong stage is that of the caption tokens."""
    import max_zimage.pipeline.stages as denoising

    def without_pads(spec, captions, device):
        _, padded, *rest = arguments(spec, captions, device)
        return (padded, padded, *rest)

    arguments = caption_arguments
    monkeypatch.setattr(denoising, "caption_arguments", without_pads)
    with pytest.raises(AssertionError, match="the first stage that diverges is caption tokens"):
        assert_same(engine_stages(embedded, CALL), reference_stages(embedded, CALL), STAGES_L2)
