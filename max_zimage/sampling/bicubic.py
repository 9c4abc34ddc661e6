"""Bicubic interpolation of latents, as torch's with corners not aligned and without a filter against aliasing.

    place of sample i of the result = (i + 1/2) · before / after - 1/2
    value = sum over the four samples around it of their values times the cubic convolution's weights, a = -3/4

Samples beyond an edge are the edge's. Weights and sums are float64, rounded once.

Reference: torch aten/src/ATen/native/UpSample.h (cubic_convolution1, cubic_convolution2,
area_pixel_compute_source_index).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_A = -0.75


def interpolated(values: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Values in other numbers of rows and columns.

    Args:
        values: float32 [..., rows, columns].
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        float32 [..., height, width].
    """
    down, across = _weights(values.shape[-2], height), _weights(values.shape[-1], width)
    return np.asarray(down @ values.astype(np.float64) @ across.T, np.float32)


def _weights(before: int, after: int) -> npt.NDArray[np.float64]:
    """What of each sample each of the result's is, float64 [after, before]."""
    places = (np.arange(after) + 0.5) * (before / after) - 0.5
    first = np.floor(places).astype(np.int64) - 1
    found = np.zeros((after, before))
    for tap in range(4):
        weights = _cubic(np.abs(places - (first + tap)))
        np.add.at(found, (np.arange(after), np.clip(first + tap, 0, before - 1)), weights)
    return found


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cubic convolution's weight of a sample at a distance from 0 to 2."""
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = _A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
