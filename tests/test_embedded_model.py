"""The embedded model's trainer: scenes, what it computes beside diffusers, and going on after an interruption."""

from __future__ import annotations

import pytest
import torch
from tolerances import TRANSFORMER_L2

from benchmarks.embedded_model.tokenizer import train_tokenizer
from benchmarks.embedded_model.transformer import Captions, Model, new_text_encoder, new_transformer, patchify


def randomized(module: torch.nn.Module) -> None:
    """Weights that a training would leave: nothing is zero, so that nothing is invisible."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)


# 64 image tokens, and 36 and 48 that are padded; captions of unequal lengths.
@pytest.mark.parametrize("grid", [(8, 8), (6, 6), (6, 8)])
@torch.no_grad()
def test_what_is_trained_is_what_diffusers_runs(grid: tuple[int, int]) -> None:
    tokenizer = train_tokenizer()
    captions = Captions.of(tokenizer, ["", "a red star above a blue ring on white"])
    text, transformer = new_text_encoder(len(tokenizer)), new_transformer()
    randomized(transformer)
    latents = torch.randn(2, 16, 2 * grid[0], 2 * grid[1], generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.1, 0.7])
    hidden = text.model(input_ids=captions.ids, attention_mask=captions.mask, output_hidden_states=True)
    features = [row[mask == 1] for row, mask in zip(hidden.hidden_states[-2], captions.mask, strict=True)]
    theirs = transformer([image[:, None] for image in latents], times, features).sample

    ours = Model(text, transformer)(patchify(latents), times, captions.ids, captions.mask, grid)
    expected = patchify(torch.stack([image[:, 0] for image in theirs]))
    assert torch.linalg.norm(ours - expected) / torch.linalg.norm(expected) < TRANSFORMER_L2
