"""Noise as torch draws it, to the bit, and noise between two seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from max_zimage.sampling.noise import standard_normal
from max_zimage.sampling.starting_noise import NoiseSource, between
from max_zimage.sampling.torch_noise import torch_normal

SHAPE = (16, 12, 10)
DRAWS_AS_DOCUMENTED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.skipif(not DRAWS_AS_DOCUMENTED, reason="torch has another kernel here, and draws other last bits")
@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1, 2**32 + 5, 2**63 - 1])
@pytest.mark.parametrize("shape", [(16, 128, 128), (16, 8, 6), (5, 3, 7), (1, 4, 4), (3, 11)])
def test_torch_noise_is_torchs_to_the_bit(seed: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    for before in range(3):
        expected = torch.randn(shape, generator=generator).numpy()
        np.testing.assert_array_equal(torch_normal(seed, shape, [math.prod(shape)] * before), expected)


def test_torch_noise_is_known() -> None:
    """Whatever torch is installed, and on every machine."""
    found = torch_normal(42, (2, 16))
    assert found.dtype == np.float32
    assert found[0, :4].tolist() == [1.9269152879714966, 1.4872840642929077, 0.9007171988487244, -2.1055209636688232]
    with pytest.raises(ValueError, match="fewer than 16 values in another way"):
        torch_normal(42, (15,))


@pytest.mark.parametrize("kind", ["philox", "torch"])
def test_every_picture_has_a_seed_of_its_own(kind: str) -> None:
    source = NoiseSource(kind=kind, seed=7, variation_seed=100, variation_strength=0.3)  # type: ignore[arg-type]
    three = source.starting(3, SHAPE)
    alone = NoiseSource(kind=kind, seed=9, variation_seed=102, variation_strength=0.3)  # type: ignore[arg-type]
    np.testing.assert_array_equal(three[2], alone.starting(1, SHAPE)[0])


def test_an_image_is_sampled_before_noise_is_drawn() -> None:
    """As diffusers does with one generator."""
    source = NoiseSource(kind="torch", seed=3, from_image=True)
    np.testing.assert_array_equal(source.posterior(1, SHAPE)[0], torch_normal(3, SHAPE))
    np.testing.assert_array_equal(source.starting(1, SHAPE)[0], torch_normal(3, SHAPE, [math.prod(SHAPE)]))


def test_between_two_seeds() -> None:
    one, other = standard_normal(1, SHAPE), standard_normal(2, SHAPE)
    np.testing.assert_array_equal(NoiseSource(seed=1).starting(1, SHAPE)[0], one)
    for strength, expected in ((0.0, one), (1.0, other)):
        found = NoiseSource(seed=1, variation_seed=2, variation_strength=strength).starting(1, SHAPE)[0]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    angle = np.arccos(np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))
    quarter = (np.sin(0.75 * angle) * one + np.sin(0.25 * angle) * other) / np.sin(angle)
    np.testing.assert_allclose(between(one, other, 0.25), quarter, rtol=1e-5, atol=1e-6)
    assert between(one, other, 0.25).std() == pytest.approx(1, abs=0.03)  # a straight line would lose a fifth
    np.testing.assert_allclose(between(one, one, 0.4), one, atol=1e-6)
