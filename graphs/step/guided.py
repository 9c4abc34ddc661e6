"""Guide and Advance apart from a Predict: the update of a whole batch under guidance that is not linear.

    velocity of every branch row -> [VariantGuide] -> prediction -> [Advance] -> latents, history

Runs behind the step's own graph, whose velocities it takes and whose update it replaces: so a variant needs no second
transformer, and goes with step caches, which make velocities too.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, IMAGE_TOKENS, ITEMS, OTHERS
from max_zimage.graphs.guiders.variants import VariantGuide, VariantInputs, variant_types
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.advance import Advance
from max_zimage.graphs.step.inputs import BranchInputs, advance_types, branch_types


class GuidedUpdate(Module[..., tuple[Tensor, Tensor, Tensor, Tensor]]):
    """`VariantGuide` and `Advance`."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec, self.guide, self.advance = spec, VariantGuide(), Advance()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Update.

        Args:
            *inputs: The latents of the evaluation, float32 [batch, image_tokens, patch_dim]; the velocity of every
                branch row, float32 [items, image_tokens, patch_dim]; `BranchInputs`; guidance scale, float32 [1]; the
                other branches' scales, float32 [others]; `VariantInputs`; `AdvanceInputs`.

        Returns:
            Latents, history and prediction as `graphs.step.compose.Composed` returns them; APG's running difference.
        """
        taken = iter(inputs)
        latents, velocity = next(taken), next(taken)
        branches = BranchInputs(*(next(taken) for _ in BranchInputs._fields))
        scale, scales = next(taken), next(taken)
        variant = VariantInputs(*(next(taken) for _ in VariantInputs._fields))
        positive, negative, others = (F.gather(velocity, rows, axis=0) for rows in branches)
        prediction, running = self.guide(positive, negative, others, scale, scales, *variant)
        moved, history = self.advance(latents, prediction, *taken)
        return moved, history, prediction, running

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        width = self.spec.patch_dim
        return (
            TensorType(DType.float32, [BATCH, IMAGE_TOKENS, width], device),
            TensorType(DType.float32, [ITEMS, IMAGE_TOKENS, width], device),
            *branch_types(device),
            TensorType(DType.float32, [1], device),
            TensorType(DType.float32, [OTHERS], device),
            *variant_types(width, device),
            *advance_types(width, device),
        )
