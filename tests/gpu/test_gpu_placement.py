"""Components that take turns on an accelerator, and components on devices of their own; skipped without one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from max.driver import accelerator_count

from max_zimage import ZImagePipeline
from max_zimage.components import ZImageStreamedTransformer
from max_zimage.device.plans import Plan
from max_zimage.pipeline.placing import Size, needs_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(accelerator_count() == 0, reason="there is no accelerator here"),
]

CALL: dict[str, Any] = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "np"}


def draw(pipeline: ZImagePipeline, prompt: str, **given: Any) -> npt.NDArray[np.uint8]:
    return np.asarray(pipeline(prompt, **CALL | given))


@pytest.fixture(scope="module")
def kept() -> ZImagePipeline:
    return ZImagePipeline.from_pretrained(device="gpu", dtype="float32")


def test_turns_draw_the_same(kept: ZImagePipeline) -> None:
    turns = ZImagePipeline.from_pretrained(device="gpu", dtype="float32", placement="sequential")
    for prompt in ("a red star", "a blue ring", "a red star"):
        np.testing.assert_array_equal(draw(turns, prompt), draw(kept, prompt))
    assert (turns.text_encoder.is_here, turns.transformer.is_here) == (False, True)


def test_streamed_blocks_draw_the_same(kept: ZImagePipeline) -> None:
    """In two sets of buffers that a queue of its own fills again and again, each while the other is read."""
    prepared = ZImagePipeline.prepare(device="gpu", dtype="float32", placement="streamed")
    streams = needs_of(prepared.sources, Size.usual(prepared.sources), False)["transformer"].streams
    assert streams is not None
    for stay in (0, 2):
        plan = Plan(devices=dict(prepared.wish.devices), residency="streamed", stay=stay)
        streamed = ZImagePipeline.from_prepared(replace(prepared, plan=plan))
        for prompt in ("a red star", "a blue ring"):
            np.testing.assert_array_equal(draw(streamed, prompt), draw(kept, prompt))
        transformer = streamed.transformer
        assert isinstance(transformer, ZImageStreamedTransformer)
        assert transformer.blocks is not None
        most = max(event.nbytes for event in transformer.blocks.ledger)
        assert most <= (stay + 2) * streams.block


@pytest.mark.parametrize("where", [{"encoder_device": "cpu"}, {"vae_device": "cpu"}, {"dit_device": "cpu"}], ids=str)
def test_a_component_on_the_cpu_draws_nearly_the_same(where: dict[str, Any], kept: ZImagePipeline) -> None:
    """Features and latents cross between the devices; in float32 the devices differ by roundings."""
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    apart: Any = ZImagePipeline.from_pretrained(device="gpu", dtype="float32", **where)
    assert {apart.text_encoder.device.is_host, apart.transformer.device.is_host, apart.vae.device.is_host} == {
        True,
        False,
    }
    for more in ({}, {"image": image, "strength": 0.6}):
        ours, expected = (draw(each, "a red star", **more).astype(int) for each in (apart, kept))
        assert np.mean(np.abs(ours - expected) <= 2) > 0.99
