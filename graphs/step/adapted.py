"""A step whose branch rows have adapters of their own, as low-rank parts beside the matrices.

    latents -> [AdaptedTransformer] -> velocity of every branch row -> [Guide] -> prediction -> [Advance]

A graph of its own, so that the plain step stays what it is.

Reference: see `graphs.model.adapted`.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH
from max_zimage.graphs.guiders.linear import LinearGuide
from max_zimage.graphs.model.adapted import AdaptedTransformer, Factors, factor_types
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.advance import Advance
from max_zimage.graphs.step.compose import Composed
from max_zimage.graphs.step.inputs import PredictInputs, predict_types
from max_zimage.graphs.step.predict import modulation_of


class AdaptedInputs:
    """`PredictInputs`; where the parts of each picture's first block stand, int32 [batch]; then `Factors`.

    A picture that has no adapters says minus the number of blocks.
    """

    _fields = (*PredictInputs._fields, "first_parts", *Factors._fields)


class AdaptedPredict(Module[..., Tensor]):
    """The transformer over all branch rows at once."""

    Inputs = AdaptedInputs

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec
        self.transformer = AdaptedTransformer(spec)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Velocity of every branch row.

        Args:
            *inputs: `AdaptedInputs`.

        Returns:
            float32 [items, image_tokens, patch_dim].
        """
        count = len(PredictInputs._fields)
        given, first_parts, factors = PredictInputs(*inputs[:count]), inputs[count], inputs[count + 1 :]
        return self.transformer(
            F.gather(given.latents, given.latent_rows, axis=0),
            given.caption_tokens,
            given.image_rope,
            given.rope,
            given.valid_length,
            given.offsets,
            modulation_of(given.modulation, given.variants),
            given.final_scale,
            F.gather(first_parts, given.latent_rows, axis=0),
            *factors,
        )

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        first_parts = TensorType(DType.int32, [BATCH], device)
        return (*predict_types(self.spec, dtype, device), first_parts, *factor_types(self.spec, dtype, device))


def denoise_adapted(spec: TransformerSpec) -> Composed:
    """A step that runs the transformer with adapters by row."""
    return Composed(AdaptedPredict(spec), LinearGuide(), Advance(), spec.patch_dim)
