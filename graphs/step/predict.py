"""Predict: latents to the velocity of every branch row, by the transformer.

A Predict is a Module with `Inputs`, the named tuple of its arguments, whose first one is the latents. The transformer
is one; `graphs.step.extrapolate.Extrapolate`, which has no weights, is another.

Reference: diffusers pipelines/z_image/pipeline_z_image.py.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.model.transformer import Transformer, TransformerSpec
from max_zimage.graphs.step.inputs import PredictInputs, predict_types


class Predict(Module[..., Tensor]):
    """The transformer over all branch rows at once."""

    Inputs = PredictInputs

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec
        self.transformer = Transformer(spec)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Velocity of every branch row.

        Args:
            *inputs: `PredictInputs`.

        Returns:
            float32 [items, image_tokens, patch_dim].
        """
        given = PredictInputs(*inputs)
        return self.transformer(
            F.gather(given.latents, given.latent_rows, axis=0),
            given.caption_tokens,
            given.image_rope,
            given.rope,
            given.valid_length,
            given.offsets,
            modulation_of(given.modulation, given.variants),
            given.final_scale,
        )

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return predict_types(self.spec, dtype, device)


def modulation_of(modulation: Tensor, variants: Tensor) -> Tensor:
    """Each branch row's modulation, float32 [num_blocks, 4, items, dim]: a block's is one piece of memory."""
    return F.gather(modulation, variants, axis=2)
