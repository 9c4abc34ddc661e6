"""Linear guidance: the positive branch, plus what tells it from each other branch, times that branch's scale.

    prediction = positive + scale · (positive - negative), its norm limited against that of the positive branch
    prediction + sum over the other branches of their scale · (positive - other)

Classifier-free guidance has a negative branch alone, skip-layer guidance adds another one. Without guidance the
negative branch is the positive one, so that the difference is exactly zero; no other branch adds exactly zero.

Reference: diffusers pipelines/z_image/pipeline_z_image.py (guidance, renormalization), guiders/skip_layer_guidance.py.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor

from max_zimage.graphs.overflow import unless_too_large
from max_zimage.graphs.step.inputs import GuideInputs


class LinearGuide(Module[..., Tensor]):
    """Classifier-free guidance with a limit of its norm, and further branches on top of it."""

    def forward(self, positive: Tensor, negative: Tensor, others: Tensor, *inputs: Tensor) -> Tensor:
        """Predict from the branches.

        Args:
            positive: float32 [batch, image_tokens, patch_dim], the velocity for each picture's prompt.
            negative: like `positive`, for its negative prompt; `positive` again without guidance.
            others: float32 [others, batch, image_tokens, patch_dim], of further branches.
            *inputs: `GuideInputs`.

        Returns:
            Like `positive`.
        """
        given = GuideInputs(*inputs)
        guided = positive + given.guidance_scale * (positive - negative)
        limited = limit_norm(guided, positive, given.cfg_normalization)
        scales = F.reshape(given.other_scales, [others.shape[0], 1, 1, 1])
        return limited + F.squeeze(F.sum(scales * (F.unsqueeze(positive, 0) - others), axis=0), 0)


def limit_norm(prediction: Tensor, positive: Tensor, cfg_normalization: Tensor) -> Tensor:
    """Shrink each picture's prediction to at most `cfg_normalization` times the positive branch's norm.

    Args:
        prediction: float32 [batch, image_tokens, patch_dim].
        positive: like `prediction`.
        cfg_normalization: float32 [1]; 0 leaves the prediction as it is.

    Returns:
        Like `prediction`; NaN where its norm is none that float32 can tell from infinity.
    """
    norm, limit = _norm(prediction), _norm(positive) * cfg_normalization
    too_large = F.logical_and(norm > limit, F.broadcast_to(cfg_normalization > 0.0, norm.shape))
    unchanged = F.broadcast_to(F.constant(1.0, DType.float32, device=norm.device), norm.shape)
    factor = F.where(too_large, limit / norm, unchanged)
    return prediction * unless_too_large(factor, norm)


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each picture, float32 [batch, 1, 1]."""
    return F.sqrt(F.sum(F.sum(x * x, axis=2), axis=1))
