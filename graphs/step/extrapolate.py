"""TaylorSeer: the velocity of a step that is left out, extrapolated from the steps before.

    computed step: velocity, and its divided differences over the steps since the last computed one
    other steps:   velocity + k · first difference + k²/2 · second difference, then guidance and the update

k counts steps since the last computed one. The transformer has no part in a step that is extrapolated.

Reference: diffusers hooks/taylorseer_cache.py; MAX pipelines/diffusion/taylorseer.py; Liu et al., From Reusing to
Forecasting: Accelerating Diffusion Models with TaylorSeers, 2025.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from max.dtype import DType
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, IMAGE_TOKENS, ITEMS
from max_zimage.graphs.model.transformer import TransformerSpec

T = TypeVar("T")


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

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        velocity = TensorType(DType.float32, [ITEMS, IMAGE_TOKENS, self.spec.patch_dim], device)
        return (velocity, velocity, velocity, TensorType(DType.float32, [1], device))


class ExtrapolateInputs(NamedTuple, Generic[T]):
    """What `Extrapolate` takes.

    Attributes:
        latents: float32 [batch, image_tokens, patch_dim]; they have no part in it.
        velocity: float32 [items, image_tokens, patch_dim], of the last computed evaluation.
        first: like `velocity`, the first difference; anything finite where its coefficient is 0.
        second: like `velocity`, the second difference, likewise.
        coefficients: float32 [2], of the two differences: k and k²/2.
    """

    latents: T
    velocity: T
    first: T
    second: T
    coefficients: T


class Extrapolate(Module[..., Tensor]):
    """A Predict without the transformer."""

    Inputs = ExtrapolateInputs

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec

    def forward(self, *inputs: Tensor) -> Tensor:
        """Velocity of every branch row.

        Args:
            *inputs: `ExtrapolateInputs`.

        Returns:
            float32 [items, image_tokens, patch_dim].
        """
        given = ExtrapolateInputs(*inputs)
        return given.velocity + given.first * given.coefficients[0] + given.second * given.coefficients[1]

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments, which are float32 whatever the model's dtype."""
        factor = TensorType(DType.float32, [ITEMS, IMAGE_TOKENS, self.spec.patch_dim], device)
        return ExtrapolateInputs(
            latents=TensorType(DType.float32, [BATCH, IMAGE_TOKENS, self.spec.patch_dim], device),
            velocity=factor,
            first=factor,
            second=factor,
            coefficients=TensorType(DType.float32, [2], device),
        )
