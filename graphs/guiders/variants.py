"""Guidance that is not linear in the branches: CFG-Zero*, adaptive projected guidance (APG), and rescaling of any.

With c and u for the velocities of the positive and the negative branch, d = c - u and g the guidance scale:

    CFG-Zero*:  u <- u · <c, u> / (|u|^2 + 1e-8), then c + g · (c - u)
    APG:        d <- d + momentum · (d before); d <- d · min(1, threshold / |d|); of it the part along c counts eta
                times; then u + (1 + g) · d
    rescaling:  p <- p · (phi · std(c) / std(p) + 1 - phi)

All sums run over one picture. Which of them it is are numbers, so one graph has them all.

Reference: diffusers guiders/classifier_free_zero_star_guidance.py, guiders/adaptive_projected_guidance.py,
guiders/guider_utils.py (rescale_noise_cfg).
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, IMAGE_TOKENS

T = TypeVar("T")


class VariantInputs(NamedTuple, Generic[T]):
    """Which variant it is.

    Attributes:
        zero_star: float32 [1], 1 for CFG-Zero*, else 0.
        projected: float32 [1], 1 for APG, else 0.
        eta: float32 [1], of APG.
        momentum: float32 [1], of APG.
        norm_threshold: float32 [1], of APG; 0 for none.
        rescale: float32 [1], phi.
        kept: float32 [1], what the whole prediction counts: 0 where the first evaluation is to predict nothing, else 1.
        running: float32 [batch, image_tokens, patch_dim], APG's difference before, with its momentum.
    """

    zero_star: T
    projected: T
    eta: T
    momentum: T
    norm_threshold: T
    rescale: T
    kept: T
    running: T


def variant_types(patch_dim: int, device: DeviceRef) -> VariantInputs[TensorType]:
    """Types of `VariantInputs`."""
    number = TensorType(DType.float32, [1], device)
    running = TensorType(DType.float32, [BATCH, IMAGE_TOKENS, patch_dim], device)
    return VariantInputs(number, number, number, number, number, number, number, running)


class VariantGuide(Module[..., tuple[Tensor, Tensor]]):
    """A guide that computes what its numbers say."""

    def forward(
        self,
        positive: Tensor,
        negative: Tensor,
        others: Tensor,
        guidance_scale: Tensor,
        other_scales: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Predict from the branches.

        Args:
            positive: float32 [batch, image_tokens, patch_dim].
            negative: like `positive`.
            others: float32 [others, batch, image_tokens, patch_dim], added as `graphs.guiders.linear` does.
            guidance_scale: float32 [1], above 0.
            other_scales: float32 [others].
            *inputs: `VariantInputs`.

        Returns:
            The prediction, and `running` for the next evaluation, both like `positive`.
        """
        given = VariantInputs(*inputs)
        share = dot(positive, negative) / (dot(negative, negative) + 1e-8)
        base = negative * (given.zero_star * share + (1.0 - given.zero_star))
        plain = positive + guidance_scale * (positive - base)
        running = (positive - negative) + given.momentum * given.running
        along = negative + (1.0 + guidance_scale) * projected(running, positive, given.eta, given.norm_threshold)
        chosen = F.where(F.broadcast_to(given.projected > 0.0, plain.shape), along, plain)
        scales = F.reshape(other_scales, [others.shape[0], 1, 1, 1])
        summed = chosen + F.squeeze(F.sum(scales * (F.unsqueeze(positive, 0) - others), axis=0), 0)
        return rescaled(summed, positive, given.rescale) * given.kept, running


def projected(difference: Tensor, positive: Tensor, eta: Tensor, norm_threshold: Tensor) -> Tensor:
    """A difference of branches, limited in norm, with its part along the positive branch counted `eta` times."""
    norm = F.sqrt(dot(difference, difference))
    too_large = F.logical_and(norm > norm_threshold, F.broadcast_to(norm_threshold > 0.0, norm.shape))
    ones = F.broadcast_to(F.constant(1.0, DType.float32, device=norm.device), norm.shape)
    limited = difference * F.where(too_large, norm_threshold / norm, ones)
    parallel = positive * (dot(limited, positive) / dot(positive, positive))
    return (limited - parallel) + eta * parallel


def rescaled(prediction: Tensor, positive: Tensor, rescale: Tensor) -> Tensor:
    """A prediction whose spread is brought to that of the positive branch, as far as `rescale` says."""
    ratio = F.sqrt(_variance(positive) / _variance(prediction))
    is_on = F.broadcast_to(rescale > 0.0, ratio.shape)
    ones = F.broadcast_to(F.constant(1.0, DType.float32, device=ratio.device), ratio.shape)
    return prediction * F.where(is_on, rescale * ratio + (1.0 - rescale), ones)


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Inner product of each picture, float32 [batch, 1, 1]."""
    return F.sum(F.sum(one * other, axis=2), axis=1)


def _variance(x: Tensor) -> Tensor:
    """Of each picture's values, up to a factor that all pictures share; float32 [batch, 1, 1]."""
    mean = F.mean(F.mean(x, axis=2), axis=1)
    return dot(x - mean, x - mean)
