"""What quantized layers compute, in numpy: the rounding of weights and of what they are multiplied by, and the sums."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def weights(values: Floats, bits: int, group: int) -> npt.NDArray[np.float64]:
    """[outputs, inputs] as the codes and scales stand for it."""
    grouped = values.reshape(len(values), -1, group)
    if bits == 8:
        scales = (np.abs(grouped).max(-1) / np.float32(127)).astype(np.float32)[..., None]
        codes = np.rint(np.divide(grouped, scales, out=np.zeros_like(grouped), where=scales != 0))
    else:
        peak = np.take_along_axis(grouped, np.abs(grouped).argmax(-1)[..., None], -1)
        scales = peak / np.float32(-8)
        codes = np.clip(np.rint(np.divide(grouped, scales, out=np.zeros_like(grouped), where=scales != 0)), -8, 7)
    return (codes.astype(np.float64) * scales).reshape(values.shape)


def rows(values: Floats, group: int) -> npt.NDArray[np.float64]:
    """[…, inputs] as it is multiplied."""
    return weights(values.reshape(-1, values.shape[-1]), 8, group).reshape(values.shape)


def linear(x: Floats, weight: Floats, bits: int, group: int) -> npt.NDArray[np.float64]:
    """[items, length, inputs], [outputs, inputs] -> [items, length, outputs]."""
    return rows(x, group) @ weights(weight, bits, group).T


def gated_linear(x: Floats, weight: Floats, bits: int, group: int) -> npt.NDArray[np.float64]:
    """The weight's upper half gates what its lower half makes."""
    gate, up = np.split(linear(x, weight, bits, group), 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up
