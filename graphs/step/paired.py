"""A step with normalized attention guidance: each picture once, seen under its caption and under its negative one.

    latents -> [PairedTransformer] -> velocity of each picture -> [Guide] -> prediction -> [Advance] -> latents, history

A graph of its own, so that the plain step stays what it is. Guide and Advance are those of every step; with a guidance
scale of 0 and the positive rows for the negative ones the prediction is the velocity itself.

Reference: see `graphs.model.normalized_attention`.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.guiders.linear import LinearGuide
from max_zimage.graphs.model.normalized_attention import PairedTransformer
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.advance import Advance
from max_zimage.graphs.step.compose import Composed
from max_zimage.graphs.step.inputs import NagInputs, PredictInputs, nag_types, predict_types
from max_zimage.graphs.step.predict import modulation_of


class PairedInputs:
    """`PredictInputs`, then `NagInputs`. The items are each picture's caption, then each picture's negative one."""

    _fields = (*PredictInputs._fields, *NagInputs._fields)


class PairedPredict(Module[..., Tensor]):
    """The transformer over all pictures at once."""

    Inputs = PairedInputs

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec
        self.transformer = PairedTransformer(spec)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Velocity of every picture.

        Args:
            *inputs: `PairedInputs`.

        Returns:
            float32 [batch, image_tokens, patch_dim].
        """
        given = PredictInputs(*inputs[: len(PredictInputs._fields)])
        return self.transformer(
            given.latents,
            given.caption_tokens,
            given.image_rope,
            given.rope,
            given.valid_length,
            given.offsets,
            modulation_of(given.modulation, given.variants[: given.latents.shape[0]]),
            given.final_scale,
            *inputs[len(PredictInputs._fields) :],
        )

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (*predict_types(self.spec, dtype, device), *nag_types(device))


def denoise_nag(spec: TransformerSpec) -> Composed:
    """A step that runs the transformer with guided attention."""
    return Composed(PairedPredict(spec), LinearGuide(), Advance(), spec.patch_dim)
