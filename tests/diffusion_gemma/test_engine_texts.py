"""The embedded text model in compiled graphs: the captions that transformers writes by the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.training.text.evaluation import KINDS, prompts_of, with_transformers
from max_zimage import embedded
from max_zimage.diffusion_gemma.generate import write_blocks
from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma
from max_zimage.diffusion_gemma.prepared import prepare_text
from max_zimage.diffusion_gemma.settings import TextSettings
from max_zimage.diffusion_gemma.text_diffusion import TextDiffusion
from tests.references.text_diffusions import reference_model
from tests.references.text_steps import TransformersSteps

SEED = 5_000


@pytest.fixture(scope="module")
def engine() -> CompiledDiffusionGemma:
    return CompiledDiffusionGemma.from_pretrained(embedded.TEXT_PATH, device="cpu", dtype="float32")


def test_captions(engine: CompiledDiffusionGemma) -> None:
    """Thirty-two prompts of all kinds in one batch; of a last bit that decides there may be two."""
    prompts = [prompt for kind in KINDS for prompt, _ in prompts_of(kind, 4)]
    wanted = with_transformers(embedded.TEXT_PATH)(prompts, SEED)
    found = TextDiffusion(prepare_text(), engine).generate(prompts, seed=SEED)
    same = [(each.text, each.steps) == other for each, other in zip(found, wanted, strict=True)]
    assert sum(same) >= 30, [(prompts[row], found[row], wanted[row]) for row in np.flatnonzero(np.invert(same))]
    assert len({each.steps for each in found}) > 3


def test_several_canvases(engine: CompiledDiffusionGemma) -> None:
    """Three canvases behind unequal prompts, which nothing ends; temperatures at which nothing is drawn."""
    settings = TextSettings(max_new_tokens=48, num_denoising_steps=4, t_max=2e-3, t_min=1e-3)
    request = prepare_text().request(["star", "a small yellow hexagon on a black background", "ring and cross"], 7)
    ends, pad = (0,), 406
    steps = (engine, TransformersSteps(reference_model()))
    found, wanted = (
        write_blocks(model, request.ids, request.lengths, request.seeds, settings, ends=ends, pad=pad)
        for model in steps
    )
    assert found.ids.shape == (3, 48)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.steps, wanted.steps)
