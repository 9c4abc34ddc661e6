"""Dynamic position extrapolation once more: pair by pair, and around the reference's transformer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_z_image import RopeEmbedder

from max_zimage.sampling.positions.dype import Dype
from tests.references.diffusers_runs import Pair


def pair_range(dype: Dype, turns: tuple[float, float], sigma: float, dim: int, theta: float) -> tuple[int, int]:
    """The pairs between which one kind of frequency passes into another."""
    strength = dype.scale * math.pow(sigma, dype.exponent)
    length = dype.base_resolution / 16

    def correction(rotations: float) -> float:
        return dim * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low = max(math.floor(correction(math.pow(turns[0], strength))), 0)
    high = min(math.ceil(correction(math.pow(turns[1], strength))), dim - 1, dim // 2)
    return low, max(high, low)


def _kept(pair: int, between: tuple[int, int]) -> float:
    """What a pair keeps of the first kind: all below the range, nothing above."""
    low, high = between
    if pair <= low:
        return 1.0
    return 0.0 if pair >= high else 1 - (pair - low) / (high - low)


def frequency(dype: Dype, pair: int, dim: int, theta: float, local: float, whole: float, sigma: float) -> float:
    """How far a pair turns from one position to the next."""
    base = math.pow(theta, -2 * pair / dim)
    if whole == 1:
        return base
    larger = theta * math.pow(whole, dim / (dim - 2))
    if dype.method == "ntk":
        strength = dype.scale * math.pow(sigma, dype.exponent)
        factor = max(1.0, math.pow(math.pow(whole, dim / (dim - 2)), strength))
        return math.pow(theta * factor, -2 * pair / dim)
    linear = base / (local if dype.method == "vision_yarn" else whole)
    beta = _kept(pair, pair_range(dype, (1.25, 0.75), sigma, dim, theta))
    gamma = _kept(pair, pair_range(dype, (16, 2), sigma, dim, theta))
    mixed = math.pow(larger, -2 * pair / dim) * beta + linear * (1 - beta)
    return base * gamma + mixed * (1 - gamma)


def magnitude(dype: Dype, whole: float, sigma: float) -> float:
    """What cosine and sine are multiplied by."""
    if dype.method == "ntk":
        return 1.0
    if dype.method == "yarn":
        return 1 + 0.1 * math.log(whole) / whole**0.5
    level = 1.0 if sigma > dype.start_sigma else sigma / dype.start_sigma
    return 1 + 0.1 * math.log(whole) * math.pow(level, dype.exponent)


class Embedder:
    """In place of the reference's: frequencies of one noise level, as complex numbers of a length of their own.

    Args:
        plain: The reference's.
        dype: How positions are extrapolated.
        sides: Rows and columns of the picture in tokens.
    """

    def __init__(self, plain: RopeEmbedder, dype: Dype, sides: tuple[int, int]) -> None:
        self.plain, self._dype, self._sides, self.sigma = plain, dype, sides, 1.0

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Complex64 [tokens, head_dim / 2] of int [tokens, 3]."""
        dims, base = self.plain.axes_dims, self._dype.base_resolution / 16
        local = [max(1.0, side / base) for side in self._sides]
        whole = max(local)
        parts = [self.plain(ids)[:, : dims[0] // 2]]
        for axis, grown in ((1, local[0]), (2, local[1])):
            pairs = range(dims[axis] // 2)
            each = [
                frequency(self._dype, pair, dims[axis], self.plain.theta, grown, whole, self.sigma) for pair in pairs
            ]
            angles = torch.outer(ids[:, axis].double(), torch.tensor(each, dtype=torch.float64)).float().double()
            turned = torch.polar(torch.ones_like(angles), angles) * magnitude(self._dype, whole, self.sigma)
            parts.append(turned.to(torch.complex64))
        return torch.cat(parts, dim=1)


@contextmanager
def extrapolating(pair: Pair, dype: Dype, height: int, width: int) -> Iterator[None]:
    """Have the reference's transformer see extrapolated positions for a while, by the time that it is called with.

    Its context refiner goes on seeing plain ones: captions stand at row 0 and column 0.
    """
    transformer = pair.theirs.transformer
    plain = transformer.rope_embedder
    moved = Embedder(plain, dype, (height // 16, width // 16))
    frame = plain.axes_dims[0] // 2

    def learn_time(module: Any, arguments: tuple[Any, ...]) -> None:
        moved.sigma = 1 - float(arguments[1][0])

    def plain_captions(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        features, mask, table, *rest = arguments
        table = table.clone()
        table[..., frame:] /= table[..., frame:].abs().clamp(min=0.5)  # padding is 0
        return (features, mask, table, *rest)

    hooks = [transformer.register_forward_pre_hook(learn_time)]
    hooks += [layer.register_forward_pre_hook(plain_captions) for layer in transformer.context_refiner]
    transformer.rope_embedder = moved
    try:
        yield
    finally:
        transformer.rope_embedder = plain
        for hook in hooks:
            hook.remove()
