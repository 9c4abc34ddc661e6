"""The autoencoder: eight pixels a latent, 16 channels, as Z-Image's, only narrow.

Two trainings. The first is of the whole on crops of 64x64, half of them around an object, four of which cost as much as
one picture. The second is of the decoder alone, on whole pictures, from latents with a little noise, as the transformer
will hand them to it; the encoder stays as it is, so that the latents do too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.training.gradients import Numbers
from benchmarks.training.pictures import Pictures
from benchmarks.training.training import (
    Plan,
    Training,
    chance_of,
    kernels_as_matrices,
    kernels_as_they_were,
    muon,
)

CHANNELS = (16, 32, 64, 96)
CROP = 64
KL_WEIGHT = 1e-3
FIRST_LOGVAR = -4.0
NOISE = 0.15
"""Largest deviation of the noise that the decoder sees, in latents of unit scale."""

_SEEDS = {"crops": 11, "decoder": 12, "statistics": 13}


def new_autoencoder() -> AutoencoderKL:
    """With random weights that are always the same."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():  # deviations of 1 would drown the latents for the first hundreds of steps
        vae.encoder.conv_out.bias[16:] = FIRST_LOGVAR
    return vae


def train_on_crops(folder: Path, pictures: Mapping[tuple[int, int], Pictures], plan: Plan) -> AutoencoderKL:
    """The first training.

    Returns:
        An autoencoder whose configuration scales its latents to a mean of 0 and a deviation of 1.
    """
    vae = new_autoencoder().to(plan.device)
    kernels_as_matrices(vae)
    training = Training(folder, vae, muon(vae, plan), plan)

    def inputs_of(step: int) -> tuple[Tensor, ...]:
        chance, noise = chance_of(_SEEDS["crops"], step)
        pixels = torch.from_numpy(_crops(pictures, chance, plan.batch))
        return pixels, torch.randn(plan.batch, 16, CROP // 8, CROP // 8, generator=noise)

    loss_of = partial(_crops_loss, vae, plan)
    training.run(inputs_of, loss_of, lambda decibels, kl: f"PSNR {decibels:.2f} dB, KL {kl:.2f}")
    trained: AutoencoderKL = training.averaged
    kernels_as_they_were(trained)
    _scale_latents(trained, pictures)
    return trained


def train_decoder(
    folder: Path, vae: AutoencoderKL, pictures: Mapping[tuple[int, int], Pictures], plan: Plan
) -> AutoencoderKL:
    """The second training; the autoencoder given ends with the average of the decoder's weights."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.to(plan.device)
    kernels_as_matrices(vae.decoder)
    training = Training(folder, vae.decoder, muon(vae.decoder, plan), plan)

    def inputs_of(step: int) -> tuple[Tensor, ...]:
        chance, random = chance_of(_SEEDS["decoder"], step)
        pixels = torch.from_numpy(_wholes(pictures, chance, plan.batch))
        count, height, width, _ = pixels.shape
        strength = torch.rand(count, 1, 1, 1, generator=random)
        return pixels, strength, torch.randn(count, 16, height // 8, width // 8, generator=random)

    loss_of = partial(_decoder_loss, vae, plan)
    training.run(inputs_of, loss_of, lambda decibels: f"PSNR {decibels:.2f} dB")
    vae.decoder.load_state_dict(training.averaged.state_dict())
    kernels_as_they_were(vae.decoder)
    return vae


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pictures through encoder and decoder in float32, uint8 [n, height, width, 3]."""
    wanted = scaled(torch.tensor(pixels, device=vae.device))
    return _bytes(vae.decode(vae.encode(wanted).latent_dist.mode()).sample)


@torch.no_grad()
def pixels_of(vae: AutoencoderKL, latents: Tensor) -> npt.NDArray[np.uint8]:
    """Decode latents of unit scale, float32 [n, 16, height / 8, width / 8], to uint8 [n, height, width, 3]."""
    latents = latents.to(vae.device)
    return _bytes(vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample)


def _bytes(out: Tensor) -> npt.NDArray[np.uint8]:
    return ((out.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def scaled(pixels: Tensor) -> Tensor:
    """uint8 [n, height, width, 3] as float32 [n, 3, height, width] from -1 to 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(error: Tensor) -> Tensor:
    """In dB, of an error in numbers from -1 to 1."""
    return -10 * torch.log10((error.detach() ** 2).mean() / 4)


def _crops_loss(vae: AutoencoderKL, plan: Plan, pixels: Tensor, noise: Tensor) -> Numbers:
    """Loss, PSNR and KL of uint8 [n, height, width, 3] and the noise of its latents."""
    wanted = scaled(pixels)
    with plan.half():
        out, mean, logvar = _through(vae, wanted, noise)
    error = out.float() - wanted
    kl = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).mean()
    return _reconstruction(error) + KL_WEIGHT * kl, psnr(error), kl


def _decoder_loss(vae: AutoencoderKL, plan: Plan, pixels: Tensor, strength: Tensor, noise: Tensor) -> Numbers:
    """Loss and PSNR of uint8 [n, height, width, 3], with noise of a strength from 0 to 1 on its latents."""
    wanted = scaled(pixels)
    with torch.no_grad(), plan.half():
        latents = _means(vae, wanted).float()
    with plan.half():
        out = vae.decoder(latents + NOISE / vae.config.scaling_factor * strength * noise)
    error = out.float() - wanted
    return _reconstruction(error), psnr(error)


def _through(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, logvar = vae.encoder(pixels).chunk(2, dim=1)
    logvar = logvar.clamp(-20, 10)
    return vae.decoder(mean + noise * (0.5 * logvar).exp()), mean, logvar


def _means(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    return vae.encoder(pixels).chunk(2, dim=1)[0]


def _reconstruction(error: Tensor) -> Tensor:
    """Absolute and squared error, and the absolute error of the slopes, which is where edges are."""
    slopes = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 4 * (error**2).mean() + 0.5 * slopes


def _crops(
    pictures: Mapping[tuple[int, int], Pictures], chance: np.random.Generator, count: int
) -> npt.NDArray[np.uint8]:
    pixels = pictures[128, 128].pixels
    tops, lefts = chance.integers(0, 128 - CROP + 1, (2, count))
    # Edges of objects in the middle are a quarter to three quarters down and across.
    tops[::2], lefts[::2] = np.clip(tops[::2], 12, 52), np.clip(lefts[::2], 12, 52)
    chosen = chance.integers(len(pixels), size=count)
    return np.stack([pixels[n, y : y + CROP, x : x + CROP] for n, y, x in zip(chosen, tops, lefts, strict=True)])


def _wholes(
    pictures: Mapping[tuple[int, int], Pictures], chance: np.random.Generator, count: int
) -> npt.NDArray[np.uint8]:
    counts = np.array([len(some.pixels) for some in pictures.values()])
    some = list(pictures.values())[int(chance.choice(len(counts), p=counts / counts.sum()))]
    return some.pixels[np.sort(chance.integers(len(some.pixels), size=count))]


@torch.no_grad()
def _scale_latents(vae: AutoencoderKL, pictures: Mapping[tuple[int, int], Pictures]) -> None:
    chance, _ = chance_of(_SEEDS["statistics"], 0)
    some = (torch.from_numpy(_wholes(pictures, chance, 16)).to(vae.device) for _ in range(16))
    means = torch.cat([_means(vae, scaled(pixels)).flatten() for pixels in some])
    vae.register_to_config(shift_factor=float(means.mean()), scaling_factor=float(1 / means.std()))
