"""Flow matching on latents and captions: what one step of the training of text encoder and transformer is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.training.autoencoder import scaled
from benchmarks.training.gradients import Numbers
from benchmarks.training.pictures import Pictures
from benchmarks.training.training import Plan, Training, chance_of, muon
from benchmarks.training.transformer import Captions, Model, patchify, unpatchify

SHIFT = 3.0
"""Of the noise levels, in training and in the checkpoint's scheduler."""
UNIFORM = 0.25
"""Share of noise levels that are drawn evenly before the shift; the others come from the middle more often."""
NO_CAPTION = 0.1
"""Share of pictures whose caption is empty, which is what guidance compares with."""
BY_ADAM = ("embed", "adaLN_modulation", "final_layer", "pad_token")
"""Names of the matrices that Muon is not meant for: inputs, outputs, and what the timestep decides."""

_SEED = 21


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Pictures of one size, as the transformer sees them.

    Attributes:
        values: float16 [count, 16, height / 8, width / 8], of unit scale.
        captions: One each; the last row is the empty caption.
    """

    values: Tensor
    captions: Captions


@torch.no_grad()
def encode_all(
    vae: AutoencoderKL,
    tokenizer: PreTrainedTokenizerBase,
    pictures: Mapping[tuple[int, int], Pictures],
    file: Path,
) -> dict[tuple[int, int], Latents]:
    """Means of the latents of all pictures, from the file if they were computed before."""
    if not file.exists():
        values = {size: _encoded(vae, some) for size, some in pictures.items()}
        torch.save(values, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    known = torch.load(file, weights_only=True)
    return {
        size: Latents(values=known[size], captions=Captions.of(tokenizer, [*some.captions, ""]))
        for size, some in pictures.items()
    }


def _encoded(vae: AutoencoderKL, pictures: Pictures) -> Tensor:
    parts = []
    for begin in range(0, len(pictures.pixels), 50):
        pixels = torch.tensor(pictures.pixels[begin : begin + 50], device=vae.device)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            means = vae.encode(scaled(pixels)).latent_dist.mode()
        parts.append(((means.float() - vae.config.shift_factor) * vae.config.scaling_factor).half().cpu())
    return torch.cat(parts)


def noise_levels(count: int, random: torch.Generator) -> Tensor:
    """Sigmas from 0 to 1, float32 [count], most of them where an image takes shape."""
    middle = torch.randn(count, generator=random).sigmoid()
    even = torch.rand(count, generator=random)
    u = torch.where(torch.rand(count, generator=random) < UNIFORM, even, middle)
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def train(
    folder: Path,
    model: Model,
    latents: Mapping[tuple[int, int], Latents],
    plan: Plan,
    show: Callable[[Model, int], None],
) -> Model:
    """Train both; the model given ends with the average of its weights.

    Args:
        folder: For the curve and the state to go on from.
        model: Text encoder and transformer.
        latents: What to learn from, by picture size.
        plan: How long and how fast.
        show: Is called with an averaged model and the step after each tenth.
    """
    model.to(plan.device)
    training = Training(folder, model, muon(model, plan, BY_ADAM), plan)
    if plan.device == "cpu":  # on a GPU, operations are recorded as they are
        for block in model.blocks():
            block.compile(dynamic=False)
    sizes = list(latents)
    counts = np.array([len(latents[size].values) for size in sizes])

    def inputs_of(step: int) -> tuple[Tensor, ...]:
        chance, random = chance_of(_SEED, step)
        some = latents[sizes[int(chance.choice(len(sizes), p=counts / counts.sum()))]]
        rows = torch.from_numpy(chance.integers(len(some.values), size=plan.batch))
        texts = torch.where(torch.rand(plan.batch, generator=random) < NO_CAPTION, len(some.values), rows)
        return _inputs(some, rows, texts, random)

    training.run(inputs_of, partial(_loss, model, plan), show=show)
    model.load_state_dict(training.averaged.state_dict())
    return model


@torch.no_grad()
def sample(model: nn.Module, captions: Captions, noise: Tensor, steps: int) -> Tensor:
    """Latents drawn by a model in training, without guidance: a look at it, not the pipeline.

    Args:
        model: Text encoder and transformer.
        captions: One a row of the noise.
        noise: float32 [batch, 16, height, width].
        steps: Of Euler's method.
    """
    device = next(model.parameters()).device
    ids, mask = captions.ids.to(device), captions.mask.to(device)
    latents, grid = noise.to(device), (noise.shape[2] // 2, noise.shape[3] // 2)
    u = torch.linspace(1, 0, steps + 1)
    for sigma, following in pairwise(SHIFT * u / (1 + (SHIFT - 1) * u)):
        times = (1 - sigma).expand(len(noise)).to(device)
        velocity = unpatchify(model(patchify(latents), times, ids, mask, grid), grid)
        latents = latents + (sigma - following) * velocity
    return latents.cpu()


def _inputs(latents: Latents, rows: Tensor, texts: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
    """Latents float16, noise and noise levels float32, ids and mask of captions: a step, in host memory."""
    clean = latents.values[rows]
    noise = torch.randn(clean.shape, generator=random)
    sigma = noise_levels(len(rows), random)
    return clean, noise, sigma, latents.captions.ids[texts], latents.captions.mask[texts]


def _loss(
    model: nn.Module, plan: Plan, latents: Tensor, noise: Tensor, sigma: Tensor, ids: Tensor, mask: Tensor
) -> Numbers:
    clean = latents.float()
    noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
    grid = (clean.shape[2] // 2, clean.shape[3] // 2)
    with plan.half():
        velocity = model(patchify(noisy), 1 - sigma, ids, mask, grid)
    return (F.mse_loss(velocity.float(), patchify(clean - noise)),)
