"""Sizes of the published model in each storage, from shapes: `reference/weights.md` section 2.1, and the graphs."""

from __future__ import annotations

from math import prod

import pytest
from max.graph import DeviceRef

from benchmarks.docs import overlap
from max_zimage import ZImagePipeline
from max_zimage.checkpoint.blocks import streams_of
from max_zimage.checkpoint.derived import STORED, derived_plans, stored_bytes
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.compile.registry import made


def test_sizes_of_the_published_model() -> None:
    plans = derived_plans(FULL_MODEL)
    found = {each.name: stored_bytes(plans, each) for each in STORED}
    expected = {
        ("float32", "transformer"): 24.62, ("bfloat16", "transformer"): 12.31, ("fp8", "transformer"): 6.29,
        ("Q8_0", "transformer"): 6.67, ("Q4_0", "transformer"): 3.66, ("bfloat16", "text_encoder"): 7.84,
        ("fp8", "text_encoder"): 4.31, ("Q8_0", "text_encoder"): 4.53, ("bfloat16", "vae"): 0.168,
        ("int8 by row", "transformer"): 6.30, ("mxfp8", "transformer"): 6.48, ("Q6_K", "transformer"): 5.21,
        ("Q5_K", "transformer"): 4.41, ("Q5_0", "transformer"): 4.41, ("Q4_K", "transformer"): 3.66,
        ("nvfp4", "transformer"): 3.66, ("nf4", "transformer"): 3.66, ("Q3_K", "transformer"): 2.86,
        # By hand: codes of 1.03125 and 0.625 bytes for the matrices of blocks, 2 for everything else.
        ("int8", "transformer"): 6.48, ("q4", "text_encoder"): 2.99,
    }  # fmt: skip
    assert {key: found[key[0]][key[1]] / 1e9 for key in expected} == pytest.approx(expected, abs=0.006)
    assert "vae" not in found["int8"]
    rows = found["int8 by row"]["transformer"] - found["fp8"]["transformer"]
    assert rows == 4 * 34 * (4 * 3840 + 2 * 10240 + 3840)  # a scale for each output of 34 blocks' matrices


def test_shapes_of_a_configuration_are_those_of_the_files_and_of_the_graphs() -> None:
    sources = ZImagePipeline.prepare(device="cpu").sources
    plans = derived_plans(sources.specs)
    for each in STORED:
        assert stored_bytes(plans, each) == stored_bytes(sources.plans, each)
    parameters = {}
    for name in ("denoise", "conditioning", "modulation"):
        module, _ = made(name, FULL_MODEL, "bfloat16", DeviceRef.CPU())
        for parameter, tensor in module.parameters:
            sides = [int(side) for side in tensor.shape]
            parameters[parameter.removeprefix("predict.").removeprefix("transformer.")] = prod(sides)
    assert derived_plans(FULL_MODEL)["transformer"].nbytes("bfloat16") == 2 * sum(parameters.values())


def test_blocks_of_the_published_model() -> None:
    """A main layer is 4 D² + 3 D F and its norms, `reference/weights.md` section 0.1."""
    spec, plan = FULL_MODEL.transformer, derived_plans(FULL_MODEL)["transformer"]
    streams = streams_of(plan, "bfloat16", spec)
    norms = 4 * spec.dim
    block = 4 * spec.dim**2 + 3 * spec.dim * spec.ffn_dim + norms + 2 * spec.head_dim
    assert (streams.count, streams.block) == (30, 2 * block)
    assert streams.around == plan.nbytes("bfloat16") - 30 * 2 * (block - norms)
    assert streams.passing == 2 * 2 * spec.ffn_dim * spec.dim


def test_copies_hide_behind_what_takes_longer() -> None:
    """Closed forms: all streamed, a layer takes as long as the longer of the two; the rest hides in between."""
    assert overlap.forward(30, 0, 2.0, 3.0).whole == pytest.approx(90)
    assert overlap.forward(30, 0, 3.0, 2.0).whole == pytest.approx(90)
    assert overlap.forward(30, 30, 3.0, 9.0).whole == pytest.approx(90)
    assert overlap.forward(30, 20, 1.0, 2.5).whole == pytest.approx(30)
    assert overlap.forward(30, 20, 1.0, 5.0).whole == pytest.approx(50)
    text = overlap.PAGE.read_text(encoding="utf-8")
    assert overlap.rendered(text) == text, "python -m benchmarks.docs.overlap"
