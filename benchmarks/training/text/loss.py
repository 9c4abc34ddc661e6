"""What one step of the training computes: uniform noise on captions, and the next token beside it.

The corruption is that of uniform text diffusion: a level t evenly from 0 to 1 a caption, and every token of the canvas
replaced, with probability t, by any of the vocabulary. All places are supervised, by the cross-entropy of the logits
without temperature. Reference: TRL examples/scripts/sft_diffusion_gemma.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training.gradients import Numbers
from benchmarks.training.text.model import Denoiser

SELF_CONDITIONED = 0.5
"""Share of captions whose pass is given the logits of a pass before."""
LEAST_NOISE = 1e-4


def noised(captions: Tensor, vocabulary: int, random: torch.Generator) -> Tensor:
    """Captions with some tokens replaced, int64 of the same shape [batch, canvas]."""
    level = torch.empty(len(captions), 1).uniform_(LEAST_NOISE, 1 - LEAST_NOISE, generator=random)
    replaced = torch.rand(captions.shape, generator=random) < level
    return torch.where(replaced, torch.randint(vocabulary, captions.shape, generator=random), captions)


def loss_of(
    denoiser: Denoiser, prompts: Tensor, lengths: Tensor, captions: Tensor, canvas: Tensor, told: Tensor
) -> Numbers:
    """Both losses added, then each alone.

    Args:
        denoiser: What learns.
        prompts: int64 [batch, width], padded on the left.
        lengths: int64 [batch], tokens of each prompt.
        captions: int64 [batch, canvas], what is to be written, filled with ends.
        canvas: The captions with noise.
        told: bool [batch], which rows are given logits of a pass before.
    """
    width = prompts.shape[1]
    tokens = torch.cat([prompts, captions[:, :-1]], dim=1)
    following, cache = denoiser.encode(tokens, lengths, width)
    with torch.no_grad():
        known = denoiser.denoise(canvas, cache, lengths, width, None, None)
    written = denoiser.denoise(canvas, cache, lengths, width, known, told)
    diffusion = F.cross_entropy(written.flatten(0, 1), captions.flatten())
    causal = F.cross_entropy(following.flatten(0, 1), captions.flatten())
    return diffusion + causal, diffusion, causal
