"""Bicubic interpolation against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from max_zimage.sampling.bicubic import interpolated


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, 6), (16, 12)), ((7, 5), (16, 9)), ((12, 10), (5, 10)), ((1, 2), (4, 3)), ((6, 6), (6, 6))],
)
def test_values_are_torchs(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Twice the sides, odd shares, smaller, sides of one or two samples, and nothing to do."""
    values = np.random.default_rng(1).standard_normal((2, 3, *before), np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values), after, mode="bicubic", align_corners=False)
    found = interpolated(values, *after)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=4e-6)


def test_what_is_even_stays_even() -> None:
    np.testing.assert_allclose(interpolated(np.full((1, 4, 5), 3.0, np.float32), 9, 8), 3.0, rtol=1e-7)
