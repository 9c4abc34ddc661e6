"""TaylorSeer: the velocity of a step that is left out, extrapolated from the steps before.

    computed step: velocity, and its divided differences over the steps since the last computed one
    other steps:   velocity + k · first difference + k²/2 · second difference, then guidance and the Euler update

k counts steps since the last computed one. The transformer has no part in a step that is extrapolated.

Reference: diffusers hooks/taylorseer_cache.py; MAX pipelines/diffusion/taylorseer.py; Liu et al., From Reusing to
Forecasting: Accelerating Diffusion Models with TaylorSeers, 2025.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, IMAGE_TOKENS, ITEMS
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.denoise import guided_step


class TaylorUpdate(Module[..., tuple[Tensor, Tensor]]):
    """What a computed step leaves for those that follow."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec

    def forward(self, velocity: Tensor, previous: Tensor, first: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Divided differences.

        Args:
            velocity: float32 [items, image_tokens, patch_dim], of this step.
            previous: like `velocity`, of the computed step before.
            first: like `velocity`, the first difference at the computed step before.
            gap: float32 [1], steps between the two.

        Returns:
            The first difference at this step, and the second one, which means something once `first` does.
        """
        current = (velocity - previous) / gap
        return current, (current - first) / gap

    def input_types(self, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        velocity = TensorType(DType.float32, [ITEMS, IMAGE_TOKENS, self.spec.patch_dim], device)
        return (velocity, velocity, velocity, TensorType(DType.float32, [1], device))


class TaylorStep(Module[..., tuple[Tensor, Tensor]]):
    """A denoising step without the transformer."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec

    def forward(
        self,
        latents: Tensor,
        velocity: Tensor,
        first: Tensor,
        second: Tensor,
        coefficients: Tensor,
        positive_rows: Tensor,
        negative_rows: Tensor,
        guidance_scale: Tensor,
        cfg_normalization: Tensor,
        delta: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            latents: float32 [batch, image_tokens, patch_dim].
            velocity: float32 [items, image_tokens, patch_dim], of the last computed step.
            first: like `velocity`, the first difference; anything finite where its coefficient is 0.
            second: like `velocity`, the second difference, likewise.
            coefficients: float32 [2], of the two differences: k and k²/2.
            positive_rows: int32 [batch]; see `graphs.step.denoise.DenoiseStep`, also for what follows.
            negative_rows: int32 [batch].
            guidance_scale: float32 [1].
            cfg_normalization: float32 [1].
            delta: float32 [1].

        Returns:
            As `graphs.step.denoise.DenoiseStep`: latents of the next step, and the velocity of every item.
        """
        predicted = velocity + first * coefficients[0] + second * coefficients[1]
        positive, negative = (F.gather(predicted, rows, axis=0) for rows in (positive_rows, negative_rows))
        return guided_step(latents, positive, negative, guidance_scale, cfg_normalization, delta), predicted

    def input_types(self, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        factor = TensorType(DType.float32, [ITEMS, IMAGE_TOKENS, self.spec.patch_dim], device)
        return (
            TensorType(DType.float32, [BATCH, IMAGE_TOKENS, self.spec.patch_dim], device),
            factor,
            factor,
            factor,
            TensorType(DType.float32, [2], device),
            TensorType(DType.int32, [BATCH], device),
            TensorType(DType.int32, [BATCH], device),
            *(TensorType(DType.float32, [1], device) for _ in range(3)),
        )
