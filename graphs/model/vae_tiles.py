"""The autoencoder in tiles: a part of a picture at a time, and what is left to do when the parts have been joined.

    decode: a tile of latents -> float32 pixels, which are blended with the neighbours' before they become bytes
    encode: a tile of pixels -> mean and log variance of its latents, which are blended; then a sample and noise

Sizes are symbolic: tiles at a picture's far edges are smaller.

Reference: diffusers models/autoencoders/autoencoder_kl.py (tiled_decode, _tiled_encode).
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH
from max_zimage.graphs.model.latents import denormalize
from max_zimage.graphs.model.vae import (
    IMAGES,
    LATENT_COLUMNS,
    LATENT_ROWS,
    Decoder,
    Encoder,
    VaeSpec,
    energy,
    moments_of,
    picture_squares,
    start_types,
    started,
)
from max_zimage.graphs.model.vae_blocks import picture_dtype


class DecodeTile(Module[[Tensor], tuple[Tensor, Tensor]]):
    """A tile of latents to its pixels."""

    def __init__(self, spec: VaeSpec) -> None:
        self.spec = spec
        self.decoder = Decoder(spec)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            latents: float32 [batch, latent_rows, latent_columns, latent_channels], as the transformer has them.

        Returns:
            float32 [batch, rows, columns, 3], black at -1 and white at 1, not clamped; and float32 [batch], which is
            finite where all numbers are, see `graphs.model.vae.DecodeLatents`.
        """
        own = denormalize(latents, self.spec.scaling_factor, self.spec.shift_factor)
        pixels = self.decoder(own.cast(picture_dtype(self.decoder.conv_in.weight))).cast(DType.float32)
        return pixels, energy(latents) + energy(pixels)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        shape = (BATCH, LATENT_ROWS, LATENT_COLUMNS, self.spec.latent_channels)
        return (TensorType(DType.float32, shape, device),)


class EncodeTile(Module[[Tensor], Tensor]):
    """A tile of a picture to the moments of its latents."""

    def __init__(self, spec: VaeSpec) -> None:
        self.spec = spec
        self.encoder = Encoder(spec)

    def forward(self, image: Tensor) -> Tensor:
        """Encode.

        Args:
            image: uint8 [images, latent_rows, downscale, latent_columns, downscale, 3], as of `EncodeImage`.

        Returns:
            float32 [images, latent_rows, latent_columns, 2·latent_channels]: mean and log variance.
        """
        return moments_of(self.encoder, image)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (picture_squares(self.spec, device),)


class StartFromMoments(Module[..., Tensor]):
    """The moments of whole pictures to latents that the transformer can start from, as `EncodeImage` does it."""

    def __init__(self, spec: VaeSpec) -> None:
        self.spec = spec

    def forward(self, moments: Tensor, rows: Tensor, chosen: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
        """Draw from the posterior, and mix with noise.

        Args:
            moments: float32 [images, latent_rows, latent_columns, 2·latent_channels].
            rows: See `EncodeImage.forward`, also for what follows.
            chosen: float32 [batch, latent_channels, latent_rows, latent_columns].
            noise: Like `chosen`.
            shares: float32 [2].

        Returns:
            float32, like `noise`.
        """
        return started(self.spec, moments, rows, chosen, noise, shares)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        shape = (IMAGES, LATENT_ROWS, LATENT_COLUMNS, 2 * self.spec.latent_channels)
        return (TensorType(DType.float32, shape, device), *start_types(self.spec, device))
