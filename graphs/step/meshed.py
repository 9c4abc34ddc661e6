"""A step on several devices: compose(Predict on a mesh, Guide, Advance).

    arguments on the first device -> [MeshedTransformer] -> velocity on the first device -> [Guide] -> [Advance]

Arguments and results are those of `graphs.step.compose.denoise_step`: who calls it does not see the other devices.

Reference: see `graphs.model.meshed`.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.guiders.linear import LinearGuide
from max_zimage.graphs.model.mesh_spec import MeshSpec
from max_zimage.graphs.model.meshed import MeshedTransformer
from max_zimage.graphs.step.advance import Advance
from max_zimage.graphs.step.compose import Composed
from max_zimage.graphs.step.inputs import PredictInputs, predict_types
from max_zimage.graphs.step.predict import modulation_of


class MeshedPredict(Module[..., Tensor]):
    """The transformer over all branch rows at once, on a mesh."""

    Inputs = PredictInputs

    def __init__(self, spec: MeshSpec, is_padded: bool) -> None:
        self.spec = spec
        self.transformer = MeshedTransformer(spec, is_padded)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Velocity of every branch row.

        Args:
            *inputs: `PredictInputs`, on the first device.

        Returns:
            float32 [items, image_tokens, patch_dim], on the first device.
        """
        given = PredictInputs(*inputs)
        return self.transformer(
            F.gather(given.latents, given.latent_rows, axis=0),
            given.caption_tokens,
            given.image_rope,
            given.rope,
            given.valid_length,
            modulation_of(given.modulation, given.variants),
            given.final_scale,
        )

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return predict_types(self.spec.transformer, dtype, device)


def meshed_step(spec: MeshSpec, is_padded: bool) -> Composed:
    """A step that runs the transformer on a mesh.

    Args:
        spec: The mesh.
        is_padded: See `graphs.model.meshed.MeshedTransformer`.
    """
    return Composed(MeshedPredict(spec, is_padded), LinearGuide(), Advance(), spec.transformer.patch_dim)
