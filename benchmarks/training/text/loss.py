"""What one step of the training computes: uniform noise on captions, and the next token beside it.

The corruption is that of uniform text diffusion: a level t from 0 to 1 for each canvas, and every token of the canvas
replaced, with probability t, by any of the vocabulary; or some of them by words of captions, since what a sampler gets
wrong is a likely word in a wrong place. All places are supervised, by the cross-entropy of the logits
without temperature. Levels are drawn with a density of 2t, since what was asked for is read from the prompt only where
the canvas does not show it. Reference: TRL examples/scripts/sft_diffusion_gemma.py, whose levels are even.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training.gradients import Numbers
from benchmarks.training.text.model import Denoiser

CANVASES = 2
"""Of a caption, each with noise of its own; the last one is given the logits of a pass before."""
FEW = 0.3


def noised(
    captions: Tensor, vocabulary: int, random: torch.Generator, *, likely: float = 0.0, few: float = 0.0
) -> Tensor:
    """Canvases of captions, int64 [canvases, batch, canvas], with some tokens replaced.

    The levels of a step's canvases are spread evenly over what they are drawn from.

    Args:
        captions: int64 [batch, canvas].
        vocabulary: How many tokens there are.
        random: Where from.
        likely: Share of the replaced tokens that come from captions: half of them from the same place of another one,
            half from any place of their own.
        few: Share of the canvases that have but `FEW` of their level: what words say of each other is to be seen there.
    """
    count = CANVASES * len(captions)
    even = (torch.randperm(count, generator=random) + torch.rand(count, generator=random)) / count
    level = even.sqrt().view(CANVASES, -1, 1)
    if few:
        level = torch.where(torch.rand(level.shape, generator=random) < few, FEW * level, level)
    shape = (CANVASES, *captions.shape)
    replaced = torch.rand(shape, generator=random) < level
    other = torch.randint(vocabulary, shape, generator=random)
    if likely:
        other = torch.where(torch.rand(shape, generator=random) < likely, _words(captions, random), other)
    return torch.where(replaced, other, captions)


def _words(captions: Tensor, random: torch.Generator) -> Tensor:
    """Words of captions for every place, int64 [canvases, batch, canvas]."""
    shape = (CANVASES, *captions.shape)
    rows, places = (torch.randint(most, shape, generator=random) for most in captions.shape)
    beside = captions.gather(0, rows.flatten(0, 1)).view(shape)
    own = captions.expand(shape).gather(2, places)
    return torch.where(torch.rand(shape, generator=random) < 0.5, beside, own)


def loss_of(denoiser: Denoiser, prompts: Tensor, lengths: Tensor, captions: Tensor, canvases: Tensor) -> Numbers:
    """Both losses added, then each alone.

    Args:
        denoiser: What learns.
        prompts: int64 [batch, width], padded on the left.
        lengths: int64 [batch], tokens of each prompt.
        captions: int64 [batch, canvas], what is to be written, filled with ends.
        canvases: The captions with noise, see `noised`.
    """
    with torch.no_grad():
        (known,) = denoiser(prompts, lengths, None, [(canvases[-1], None)])
    asked = [(canvas, None) for canvas in canvases[:-1]] + [(canvases[-1], known)]
    following, *written = denoiser(prompts, lengths, captions, asked)
    diffusion = F.cross_entropy(torch.cat(written).flatten(0, 1), captions.repeat(CANVASES, 1).flatten())
    causal = F.cross_entropy(following.flatten(0, 1), captions.flatten())
    return diffusion + causal, diffusion, causal
