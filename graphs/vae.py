"""AutoencoderKL (the Flux layout): latents to pixels and pixels to latents.

Reference: diffusers models/autoencoders/autoencoder_kl.py and vae.py, Encoder and Decoder.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VaeSpec:
    """Shape of an AutoencoderKL without quantization convolutions, and the affine map from its latents to the transformer's.

    Raises:
        ValueError: If there is no block, a width is not a multiple of the number of groups, or the scaling factor is zero.
    """

    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    scaling_factor: float
    shift_factor: float

    def __post_init__(self) -> None:
        if not self.block_out_channels:
            raise ValueError("vae: block_out_channels is empty; at least one block is needed")
        uneven = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if uneven:
            raise ValueError(
                f"vae: block_out_channels {uneven} are not multiples of norm_num_groups {self.norm_num_groups}"
            )
        if self.layers_per_block < 1:
            raise ValueError(f"vae: layers_per_block must be at least 1, got {self.layers_per_block}")
        if self.scaling_factor == 0:
            raise ValueError("vae: scaling_factor is 0; latents cannot be divided by it")

    @property
    def downscale(self) -> int:
        """Side of the square of pixels that one latent pixel stands for."""
        return 2 ** (len(self.block_out_channels) - 1)
