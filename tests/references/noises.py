"""The noise that a seed stands for, of several pictures of a size."""

from __future__ import annotations

from max_zimage.sampling.starting_noise import NoiseSource
from tests.references.diffusers_runs import FloatArray


def initial_noise(seed: int, count: int, channels: int, height: int, width: int) -> FloatArray:
    """Starting latents, float32 [count, channels, height / 8, width / 8]."""
    return NoiseSource(seed=seed).starting(count, (channels, height // 8, width // 8))


def posterior_noise(seed: int, count: int, channels: int, height: int, width: int) -> FloatArray:
    """What an autoencoder samples by, like `initial_noise`."""
    return NoiseSource(seed=seed).posterior(count, (channels, height // 8, width // 8))
