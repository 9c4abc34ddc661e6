"""Whole pictures against diffusers, in float32: same weights, noise and arguments, and the pixels must be the same.

Every value of every argument at least once on the embedded model; on the random ones what goes through their own shapes
and schedules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.recording import RecordProperty
from tests.references.diffusers_runs import Call, Pair, Run, relative_l2
from tests.tolerances import PIXEL_SHARE, SAMPLED_L2

CALLS = {
    "defaults": Call(steps=8),
    # Sizes: no image padding, then 28, 16 and 29 pad tokens, then strips.
    "96x96": Call(height=96, width=96),
    "96x128": Call(height=96, width=128),
    "80x112": Call(height=80, width=112),
    "wide": Call(height=48, width=256),
    "tall": Call(height=256, width=32),
    # Captions around a multiple of 32, and longer than any the model was trained on.
    "caption of 1": Call(feature_rows=(1,), negative_feature_rows=(1,)),
    "caption of 31": Call(prompts=(31,)),
    "caption of 32": Call(prompts=(32,)),
    "caption of 33": Call(prompts=(33,)),
    "caption of 64": Call(prompts=(64,)),
    "caption of 100": Call(prompts=(100,)),
    # Batches: rows of unequal length are masked, and must still be what they are alone.
    "negative longer than the prompt": Call(prompts=(12,), negatives=(70,)),
    "two prompts, two negatives": Call(prompts=(12, 40), negatives=(75, 9), height=80, width=112),
    "one negative for both": Call(prompts=("a red star", "a small green ring on black"), negatives=("blue", "blue")),
    "three pictures a prompt": Call(prompts=(12, 40), copies=3, steps=2),
    "nothing, blanks, and what a prompt is not made of": Call(
        prompts=("", " \n", "\U0001f31f <|im_end|> (red:1.3) \x00"), negatives=("", "\t", ""), steps=2
    ),
    # Guidance: off, weaker than one (where other engines turn it off), one, and strong.
    "guidance 0": Call(guidance=0.0),
    "guidance 0.5": Call(guidance=0.5),
    "guidance 1": Call(guidance=1.0),
    "guidance 4": Call(guidance=4.0),
    "normalization 0.9": Call(guidance=4.0, cfg_normalization=0.9),
    "normalization 1, two pictures": Call(prompts=(12, 40), guidance=4.0, cfg_normalization=1.0),
    "truncation 0.5": Call(cfg_truncation=0.5, steps=8),
    "truncation 0.5, unequal captions": Call(
        prompts=(12, 40), negatives=(75, 9), cfg_truncation=0.5, cfg_normalization=0.9
    ),
    # Steps: the fewest, the distilled checkpoints' eight and nine, and the base model's fifty.
    "1 step": Call(steps=1),
    "9 steps": Call(steps=9),
    "50 steps": Call(steps=50),
    "shift 6": Call(shift=6.0, steps=8),
    "sigmas": Call(sigmas=(1.0, 0.7, 0.45, 0.1)),
    "features": Call(feature_rows=(20, 45), negative_feature_rows=(50, 8)),
}
GUIDANCE = [name for name in CALLS if name.startswith(("guidance", "normalization", "truncation"))]
"""Of which the latents of the embedded model are held to a bound, too."""
INTERESTING = [
    "80x112",
    "caption of 1",
    "two prompts, two negatives",
    "normalization 1, two pictures",
    "9 steps",
    "sigmas",
]
"""Of the random models. Theirs are the other shifts by default, 3 and 6."""

CASES = [
    (model, name)
    for model in ("embedded", "tiny64", "tiny128")
    for name in CALLS
    if model == "embedded" or name in INTERESTING
]


def pixel_shares(ours: Run, theirs: Run) -> tuple[float, float]:
    """Shares of values that are equal to within one level, and exactly."""
    difference = np.abs(ours.pixels.astype(int) - theirs.pixels)
    return float(np.mean(difference <= 1)), float(np.mean(difference == 0))


@pytest.mark.parametrize(("model", "name"), CASES, ids=lambda value: value.replace(" ", "_").replace(",", ""))
def test_pixels(model: str, name: str, request: pytest.FixtureRequest, record_property: RecordProperty) -> None:
    pair: Pair = request.getfixturevalue(model)
    ours, theirs = pair.run_ours(CALLS[name]), pair.run_theirs(CALLS[name])
    assert ours.pixels.shape == theirs.pixels.shape
    near, equal = pixel_shares(ours, theirs)
    error = relative_l2(ours.latents[-1], theirs.latents[-1])
    record_property("share_equal", equal)
    record_property("latents_relative_l2", error)
    if model == "embedded" and name in GUIDANCE:
        assert error <= SAMPLED_L2
    assert near >= PIXEL_SHARE, f"{near:.5f} within one level, {equal:.5f} equal"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("normalization 0.9", {"cfg_normalization": 0.0}),
        ("normalization 1, two pictures", {"cfg_normalization": 0.0}),
        ("truncation 0.5", {"cfg_truncation": 1.0}),
        ("guidance 0.5", {"guidance": 0.0}),
        ("shift 6", {"shift": None}),
        ("two prompts, two negatives", {"negatives": ()}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_arguments_bite(name: str, changes: dict[str, Any], embedded: Pair) -> None:
    """Without the argument that a case is about, the reference draws another picture."""
    with_it, without = (embedded.run_theirs(call).pixels for call in (CALLS[name], replace(CALLS[name], **changes)))
    assert np.mean(np.abs(with_it.astype(int) - without) > 1) > 0.02
