"""The frequencies of the timestep's sinusoids, rounded as diffusers rounds them."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder

from max_zimage.graphs.model.conditioning import _frequencies


def test_sinusoids_are_those_of_diffusers() -> None:
    """At every timestep: one unit in the last place of a frequency, times 1000, is an angle of 6e-5."""
    timesteps = torch.linspace(0, 1000, 65)
    expected = TimestepEmbedder.timestep_embedding(timesteps, 256).numpy()
    angles = timesteps.numpy()[:, None] * _frequencies(128)
    ours = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    differences = np.abs(ours - expected)
    assert np.mean(differences > 1e-6) <= 0.02  # torch's exp itself is off by a unit in two places
    assert differences.max() <= 6e-5
