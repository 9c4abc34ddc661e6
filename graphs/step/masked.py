"""Inpainting: what a mask keeps is put back after every step, at the noise level that the next one begins with.

    kept = level · noise + (1 - level) · latents of the image,    latents' = latents where the mask says so, else kept

Runs behind the step, whichever graph that is. At level 0 what is kept is the image's latents, to the bit.

Reference: diffusers pipelines/z_image/pipeline_z_image_inpaint.py; for masks in grades, ComfyUI
comfy_extras/nodes_differential_diffusion.py.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, IMAGE_TOKENS
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.overflow import unless_too_large


class KeepUnmasked(Module[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]):
    """Put back what the mask keeps."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec

    def forward(self, latents: Tensor, image: Tensor, noise: Tensor, mask: Tensor, levels: Tensor) -> Tensor:
        """Choose for every number of the latents.

        Args:
            latents: float32 [batch, image_tokens, patch_dim], after the step.
            image: Like `latents`, those of the image.
            noise: Like `latents`, that the run began with.
            mask: Like `latents`, from 0, which is kept, to 1.
            levels: float32 [3]: the noise level, 1 minus it, and from which mask on the latents stay.

        Returns:
            Like `latents`.
        """
        # Products are rounded before they are added, as where image-to-image begins: see `graphs.model.vae`.
        noisy = unless_too_large(levels[0:1] * noise, noise)
        kept = noisy + unless_too_large(levels[1:2] * image, image)
        return F.where(mask >= F.broadcast_to(levels[2:3], mask.shape), latents, kept)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        latents = TensorType(DType.float32, [BATCH, IMAGE_TOKENS, self.spec.patch_dim], device)
        return (latents, latents, latents, latents, TensorType(DType.float32, [3], device))
