"""The noise generator: its exact bits, its arithmetic, its statistics."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from max_zimage.sampling.noise import fresh_seed, image_seed, standard_normal
from max_zimage.sampling.ranges import MAX_SEED
from tests.references.noises import initial_noise


def by_the_library(seed: int, count: int) -> np.ndarray:
    """The documented generator on the C library's log, cos and sin."""
    words = np.random.Philox(key=np.asarray([seed, 0], np.uint64)).random_raw(count).reshape(-1, 2)
    units = (words >> np.uint64(11)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((units[:, 0] + 1) * 2.0**-53))
    angle = 2 * np.pi * (units[:, 1] * 2.0**-53)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1).astype(np.float32)


def test_the_bits_of_a_seed_never_change() -> None:
    values = standard_normal(42, (16, 16, 16))
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == GOLDEN_42
    assert [value.hex() for value in standard_normal(0, (4,)).tolist()] == GOLDEN_0
    assert [value.hex() for value in standard_normal(MAX_SEED, (3,)).tolist()] == GOLDEN_MAX


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32, MAX_SEED])
def test_own_series_agree_with_the_library_to_one_ulp(seed: int) -> None:
    count = 1 << 16
    np.testing.assert_array_max_ulp(standard_normal(seed, (count,)), by_the_library(seed, count), maxulp=1)


def test_values_are_standard_normal() -> None:
    values = standard_normal(7, (1 << 20,)).astype(np.float64)
    # Standard errors at 2**20 values: mean 0.001, variance 0.0014, fourth moment 0.0096; four of each allowed.
    assert abs(values.mean()) < 0.004
    assert abs(values.var() - 1) < 0.0056
    assert abs((values**4).mean() - 3) < 0.039
    for step in (1, 2, 256):
        assert abs((values[:-step] * values[step:]).mean()) < 0.004
    assert np.abs(values).max() < 8.7  # the smallest u is 2**-53


def test_an_image_does_not_depend_on_how_many_are_drawn() -> None:
    several = initial_noise(5, 3, 16, 80, 112)
    assert several.dtype == np.float32
    assert several.shape == (3, 16, 10, 14)
    for index in range(3):
        np.testing.assert_array_equal(several[index], initial_noise(image_seed(5, index), 1, 16, 80, 112)[0])
    assert abs(np.corrcoef(several[0].ravel(), several[1].ravel())[0, 1]) < 4 / np.sqrt(several[0].size)


def test_a_shape_with_an_odd_count_is_a_prefix() -> None:
    np.testing.assert_array_equal(standard_normal(3, (3, 5)).ravel(), standard_normal(3, (16,))[:15])


def test_image_seeds_wrap_at_the_largest() -> None:
    assert image_seed(MAX_SEED, 0) == MAX_SEED
    assert image_seed(MAX_SEED, 1) == 0


def test_fresh_seeds_differ_and_are_valid() -> None:
    seeds = {fresh_seed() for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to {MAX_SEED}, got {seed}"):
        standard_normal(seed, (2,))


GOLDEN_42 = "95e3d95e9ef9501da071d6371519d9a885f837b38e7034d4c8194b04f2bdb328"
GOLDEN_0 = ["0x1.44ad640000000p-3", "0x1.7dcefe0000000p+1", "-0x1.ecfa260000000p+0", "-0x1.a65ca40000000p-1"]
GOLDEN_MAX = ["0x1.4f33300000000p-3", "0x1.6d7c280000000p-2", "-0x1.f371880000000p-1"]
