"""Whole texts against transformers' own generation, by the same random numbers, on random weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)

from benchmarks.training.text.model import config_of, new_model
from max_zimage.diffusion_gemma.generate import BlockDraft, WrittenBlocks, write_blocks
from max_zimage.diffusion_gemma.settings import TextSettings
from max_zimage.diffusion_gemma.steps import CanvasLook
from max_zimage.errors import NotFiniteError
from tests.references.text_steps import TransformersSteps, drawn_as_the_engine_draws, left_padded

VOCABULARY, PAD = 120, 118
LENGTHS = np.array([3, 20, 11])
IDS = np.random.default_rng(0).integers(0, 100, (3, 20))
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module")
def steps() -> TransformersSteps:
    """Random weights, decided enough and not so much that a last bit decides."""
    model = new_model(config_of(VOCABULARY, PAD, 119))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.copy_(1 + 0.3 * torch.randn(value.shape, generator=random))
            else:
                value.mul_(8 if "router" in name else 2)
    return TransformersSteps(model)


def theirs(steps: TransformersSteps, settings: TextSettings, ends: tuple[int, ...]) -> Any:
    """What `generate` of transformers writes with the engine's numbers."""
    tokens, mask = left_padded(IDS, LENGTHS, PAD)
    config = DiffusionGemmaGenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        max_denoising_steps=settings.num_denoising_steps,
        sampler_config=EntropyBoundSamplerConfig(settings.entropy_bound),
        t_max=settings.t_max,
        t_min=settings.t_min,
        stability_threshold=settings.stability_threshold,
        confidence_threshold=settings.confidence_threshold,
        pad_token_id=PAD,
        eos_token_id=list(ends),
    )
    with drawn_as_the_engine_draws(SEEDS, VOCABULARY, steps.canvas_length):
        out = steps.model.generate(tokens, attention_mask=mask, generation_config=config)
    return out.sequences[:, tokens.shape[1] :].numpy(), out.tokens_per_forward.numpy()


def ours(steps: TransformersSteps, settings: TextSettings, ends: tuple[int, ...], **more: Any) -> WrittenBlocks:
    return write_blocks(steps, IDS, LENGTHS, SEEDS, settings, ends=ends, pad=PAD, **more)


CASES = {
    "never settles": (TextSettings(max_new_tokens=40, num_denoising_steps=3), (119,)),
    "settles at once": (
        TextSettings(max_new_tokens=32, num_denoising_steps=4, confidence_threshold=99.0, stability_threshold=0),
        (119,),
    ),
    "settles here and there": (
        TextSettings(
            max_new_tokens=48, num_denoising_steps=4, entropy_bound=9.0, confidence_threshold=4.4, stability_threshold=0
        ),
        (119, 3, 7),
    ),
    "ends": (TextSettings(max_new_tokens=64, num_denoising_steps=3, entropy_bound=9.0), tuple(range(25))),
    # Temperatures so low that what is likeliest is drawn, all is sure and nothing becomes noise again.
    "deterministic": (TextSettings(max_new_tokens=20, num_denoising_steps=4, t_max=2e-3, t_min=1e-3), (119,)),
}


@pytest.mark.parametrize("case", CASES)
def test_whole_texts(steps: TransformersSteps, case: str) -> None:
    """Prompts of different lengths in one batch, the longest with its canvas beyond the sliding window."""
    settings, ends = CASES[case]
    wanted, tokens_per_step = theirs(steps, settings, ends)
    found = ours(steps, settings, ends)
    np.testing.assert_array_equal(found.ids, wanted)
    np.testing.assert_allclose((found.ids != PAD).sum(axis=1) / found.steps, tokens_per_step, rtol=1e-6)
    np.testing.assert_array_equal(found.ended, np.isin(found.ids, ends).any(axis=1))


def test_cases_are_what_they_are_called(steps: TransformersSteps) -> None:
    found = {case: ours(steps, settings, ends) for case, (settings, ends) in CASES.items()}
    assert found["never settles"].steps.tolist() == [9, 9, 9]
    assert found["settles at once"].steps.tolist() == [2, 2, 2]
    assert len(set(found["settles here and there"].steps.tolist())) > 1
    assert found["ends"].ended.any()
    assert found["ends"].ids.shape[1] < 64 or not found["ends"].ended.all()


def test_drafts(steps: TransformersSteps) -> None:
    """One a step; the last of a canvas is what is written, and a settled row does not change any more."""
    settings, ends = CASES["settles here and there"]
    drafts: list[BlockDraft] = []
    found = ours(steps, settings, ends, on_draft=drafts.append)
    for before, after in pairwise(drafts):
        if after.block > before.block:
            assert (after.step, after.block) == (1, before.block + 1)
            continue
        assert after.step == before.step + 1
        np.testing.assert_array_equal(after.argmax[before.settled], before.argmax[before.settled])
        assert (after.settled >= before.settled).all()
    last = {draft.block: draft for draft in drafts}
    for block, draft in last.items():
        text = found.ids[:, block * 16 : block * 16 + 16]
        np.testing.assert_array_equal(np.where(text == PAD, PAD, draft.argmax), text)
        np.testing.assert_array_equal(draft.written, found.ids[:, : block * 16])


def test_what_a_callback_raises_ends_the_writing(steps: TransformersSteps) -> None:
    def stop(draft: BlockDraft) -> None:
        raise KeyboardInterrupt(f"in step {draft.step}")

    with pytest.raises(KeyboardInterrupt, match="in step 1"):
        ours(steps, *CASES["ends"], on_draft=stop)


class Spoiled:
    """In place of a model: canvases of 4 tokens, sure of all but where its numbers are none."""

    vocab_size, canvas_length, max_length = 9, 4, 64

    def __init__(self, bad_row: int, bad_step: int) -> None:
        self.bad_row, self.bad_step, self.step = bad_row, bad_step, 0

    def encode(self, ids: Any, lengths: Any) -> None:
        return None

    def denoise(self, canvas: Any, logits: Any, seen: Any, heat: float, cache: None) -> CanvasLook:
        rows, length = canvas.shape
        # The last row is sure at once, the others are never.
        entropy = np.full((rows, length), 1.0, np.float32)
        entropy[-1] = 0
        if self.step == self.bad_step:
            entropy[self.bad_row, 1] = np.nan
        self.step += 1
        top = np.zeros((rows, length, 1), np.int64)
        return CanvasLook(None, top[..., 0], np.ones(top.shape, np.float32), top, entropy)


def spoiled(bad_row: int, bad_step: int, rows: int = 3, **settings: Any) -> WrittenBlocks:
    numbers = TextSettings(max_new_tokens=4, num_denoising_steps=3, stability_threshold=0, **settings)
    model, lengths = cast(Any, Spoiled(bad_row, bad_step)), np.full(rows, 2)
    return write_blocks(model, np.ones((rows, 2), np.int64), lengths, range(rows), numbers, ends=[8], pad=7)


def test_what_is_not_finite_becomes_no_text() -> None:
    said = (
        r"text 1 of 3, counted from 0, came out as NaN .* caused it: bfloat16, .* \(try float32\), or a weight of the"
    )
    with pytest.raises(NotFiniteError, match=said):
        spoiled(1, 2)
    with pytest.raises(NotFiniteError, match=r"the text came out .* caused it: the temperature 1e-05 \(try a higher"):
        spoiled(0, 0, rows=1, t_max=1e-5, t_min=1e-6)


def test_of_a_settled_text_nothing_is_looked_at_again() -> None:
    assert spoiled(2, 2).steps.tolist() == [3, 3, 1]
