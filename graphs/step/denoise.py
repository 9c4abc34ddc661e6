"""ONE denoising step in one graph: transformer on all guidance branches, guidance, and the Euler update.

    latents -> (one row per item) -> transformer -> velocity of the positive and the negative branch
    prediction = positive + guidance · (positive - negative), its norm limited, then latents - delta · prediction

The same compiled graph serves steps with and without guidance: without, the negative branch is the positive one, so
that the difference is exactly zero. Latents, guidance and the update are float32; the model's dtype begins and ends
inside the transformer.

Reference: diffusers pipelines/z_image/pipeline_z_image.py (guidance, renormalization),
schedulers/scheduling_flow_match_euler_discrete.py.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, CAPTION_PADDED, IMAGE_PADDED, IMAGE_TOKENS, ITEMS, OFFSETS, TOKENS
from max_zimage.graphs.model.transformer import Transformer, TransformerSpec
from max_zimage.graphs.overflow import unless_too_large


class DenoiseStep(Module[..., tuple[Tensor, Tensor]]):
    """Latents of one step to latents of the next."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec
        self.transformer = Transformer(spec)

    def forward(
        self,
        latents: Tensor,
        caption_tokens: Tensor,
        image_rope: Tensor,
        rope: Tensor,
        valid_length: Tensor,
        offsets: Tensor,
        latent_rows: Tensor,
        positive_rows: Tensor,
        negative_rows: Tensor,
        modulation: Tensor,
        final_scale: Tensor,
        guidance_scale: Tensor,
        cfg_normalization: Tensor,
        delta: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            latents: float32 [batch, image_tokens, patch_dim].
            caption_tokens: [items, caption_padded, dim] in the model's dtype.
            image_rope: float32 [items, image_padded, head_dim/2, 2].
            rope: float32 [items, tokens, head_dim/2, 2], the same with the captions' positions behind.
            valid_length: uint32 [items].
            offsets: uint32 [sequences + 1], see `graphs.model.transformer.Transformer.forward`.
            latent_rows: int32 [items], the picture that each item works on.
            positive_rows: int32 [batch], the item that carries each picture's prompt.
            negative_rows: int32 [batch], the item that carries its negative prompt; equal to `positive_rows` without
                guidance.
            modulation: float32 [num_blocks, 4, dim].
            final_scale: float32 [dim].
            guidance_scale: float32 [1].
            cfg_normalization: float32 [1]: limit of the prediction's norm as a share of the positive branch's; 0 for
                none.
            delta: float32 [1], sigma of the next step minus sigma of this one.

        Returns:
            Latents of the next step, float32 [batch, image_tokens, patch_dim], and the transformer's velocity of every
            item, float32 [items, image_tokens, patch_dim].
        """
        noisy = F.gather(latents, latent_rows, axis=0)
        extents = valid_length, offsets
        velocity = self.transformer(noisy, caption_tokens, image_rope, rope, *extents, modulation, final_scale)
        positive, negative = (F.gather(velocity, rows, axis=0) for rows in (positive_rows, negative_rows))
        return guided_step(latents, positive, negative, guidance_scale, cfg_normalization, delta), velocity

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        spec = self.spec
        return (
            TensorType(DType.float32, [BATCH, IMAGE_TOKENS, spec.patch_dim], device),
            TensorType(dtype, [ITEMS, CAPTION_PADDED, spec.dim], device),
            TensorType(DType.float32, [ITEMS, IMAGE_PADDED, spec.head_dim // 2, 2], device),
            TensorType(DType.float32, [ITEMS, TOKENS, spec.head_dim // 2, 2], device),
            TensorType(DType.uint32, [ITEMS], device),
            TensorType(DType.uint32, [OFFSETS], device),
            TensorType(DType.int32, [ITEMS], device),
            TensorType(DType.int32, [BATCH], device),
            TensorType(DType.int32, [BATCH], device),
            TensorType(DType.float32, [spec.num_blocks, 4, spec.dim], device),
            TensorType(DType.float32, [spec.dim], device),
            *(TensorType(DType.float32, [1], device) for _ in range(3)),
        )


def guided_step(
    latents: Tensor,
    positive: Tensor,
    negative: Tensor,
    guidance_scale: Tensor,
    cfg_normalization: Tensor,
    delta: Tensor,
) -> Tensor:
    """Guidance and the Euler update, what a step does behind the transformer.

    Args:
        latents: float32 [batch, image_tokens, patch_dim].
        positive: like `latents`, the transformer's velocity for each picture's prompt.
        negative: like `latents`, for its negative prompt; `positive` again without guidance.
        guidance_scale: float32 [1].
        cfg_normalization: float32 [1], see `limit_norm`.
        delta: float32 [1], see `euler_step`.

    Returns:
        Latents of the next step.
    """
    prediction = positive + guidance_scale * (positive - negative)
    return euler_step(latents, limit_norm(prediction, positive, cfg_normalization), delta)


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


def euler_step(latents: Tensor, noise_pred: Tensor, dt: Tensor) -> Tensor:
    """Euler update with the sign folded in: the transformer predicts the direction from noise to image, sigma falls.

    Args:
        latents: float32 [batch, image_tokens, patch_dim].
        noise_pred: like `latents`, the transformer's prediction as it is.
        dt: float32 [1], next sigma minus current sigma (negative).

    Returns:
        latents - dt · noise_pred.
    """
    return latents - dt * noise_pred


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each picture, float32 [batch, 1, 1]."""
    return F.sqrt(F.sum(F.sum(x * x, axis=2), axis=1))
