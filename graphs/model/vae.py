"""AutoencoderKL as Flux and Z-Image use it: latents to pixels and pixels to latents.

    decode: tokens -> latents / scaling + shift -> conv -> middle block -> [residual blocks, 2x larger] -> norm, silu,
    conv -> uint8, and beside it the energy of tokens and pixels, which tells whether all of them are finite
    encode: uint8 -> conv -> [residual blocks, 2x smaller] -> middle block -> norm, silu, conv -> mean + std · noise ->
    latents

Each is one graph for every batch and size. The affine maps, the posterior and the quantization are float32 whatever the
model's dtype is.

Reference: diffusers models/autoencoders/autoencoder_kl.py and vae.py (Encoder, Decoder, DiagonalGaussianDistribution),
image_processor.py (VaeImageProcessor).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.nn.sequential import ModuleList
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, Dim, TensorType

from max_zimage.graphs.dims import BATCH
from max_zimage.graphs.model.latents import denormalize, normalize, token_squares, unpack
from max_zimage.graphs.model.vae_blocks import (
    Downsampler,
    GroupNorm,
    MiddleBlock,
    Upsampler,
    convolution,
    picture_dtype,
    resnet_block,
)
from max_zimage.graphs.overflow import unless_too_large

RGB = 3
IMAGES = "images"
LATENT_ROWS = "latent_rows"
LATENT_COLUMNS = "latent_columns"

_LOGVAR_MIN, _LOGVAR_MAX = -30.0, 20.0


@dataclass(frozen=True, kw_only=True)
class VaeSpec:
    """Shape of an AutoencoderKL without quantization convolutions, and how its latents are scaled for the transformer.

    Raises:
        ValueError: If there is no block, a width is not a multiple of the number of groups, or the scaling factor is
            zero.
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


class DecodeLatents(Module[[Tensor], tuple[Tensor, Tensor]]):
    """Image tokens to pictures."""

    def __init__(self, spec: VaeSpec) -> None:
        self.spec = spec
        self.decoder = Decoder(spec)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            tokens: float32 [batch, token_rows, token_columns, 2, 2, latent_channels], a view of the packed latents.

        Returns:
            uint8 [batch, rows, columns, 3], and float32 [batch], the sum of the squares of a picture's tokens and of
            its pixels before they are clamped. It is infinite or NaN where one of them is, or is too large for its
            square: bytes cannot tell, they are black or white there.
        """
        pixels = decode_float(self.spec, self.decoder, tokens)
        return quantize(pixels), energy(tokens) + energy(pixels)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (token_squares(self.spec.latent_channels, device),)


def decode_float(spec: VaeSpec, decoder: Decoder, tokens: Tensor) -> Tensor:
    """Image tokens as in `DecodeLatents` to float32 [batch, rows, columns, 3], black at -1 and white at 1."""
    latents = denormalize(unpack(tokens), spec.scaling_factor, spec.shift_factor)
    return decoder(latents.cast(picture_dtype(decoder.conv_in.weight))).cast(DType.float32)


def quantize(pixels: Tensor) -> Tensor:
    """float32 pixels, black at -1 and white at 1, to uint8: clamped, and halves rounded to even as numpy does."""
    unit = F.clamp(pixels * 0.5 + 0.5, 0.0, 1.0)
    return F.round(unit * 255.0).cast(DType.uint8)


def energy(x: Tensor) -> Tensor:
    """Sum of squares of each picture, float32 [batch, rows, columns, ...] -> [batch]."""
    batch, rows, *rest = x.shape
    flat = F.reshape(x, [batch, rows, math.prod(rest, start=Dim(1))])
    return F.reshape(F.sum(F.sum(flat * flat, axis=2), axis=1), [batch])


class EncodeImage(Module[..., Tensor]):
    """Pictures to latents that the transformer can start from, each encoded once for all that begin with it.

        sigma · noise + (1 - sigma) · (a sample of the picture's posterior)

    Reference: diffusers pipelines/z_image/pipeline_z_image_img2img.py (prepare_latents).
    """

    def __init__(self, spec: VaeSpec) -> None:
        self.spec = spec
        self.encoder = Encoder(spec)

    def forward(self, image: Tensor, rows: Tensor, chosen: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
        """Encode, draw from the posterior, and mix with noise.

        Args:
            image: uint8 [images, latent_rows, downscale, latent_columns, downscale, 3], a view of pictures, channels
                last.
            rows: int32 [batch], the picture that each of the batch begins with.
            chosen: float32 [batch, latent_channels, latent_rows, latent_columns], standard normal; zeros give the
                posterior's mode.
            noise: Like `chosen`, the starting noise.
            shares: float32 [2], of the noise and of the sample: sigma and 1 - sigma.

        Returns:
            float32, like `noise`.
        """
        return started(self.spec, moments_of(self.encoder, image), rows, chosen, noise, shares)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (picture_squares(self.spec, device), *start_types(self.spec, device))


def moments_of(encoder: Encoder, image: Tensor) -> Tensor:
    """Pictures as in `EncodeImage` to float32 [images, latent_rows, latent_columns, 2·latent_channels]."""
    images, latent_rows, side, columns, _, _ = image.shape
    pixels = F.reshape(image, [images, latent_rows * side, columns * side, RGB]).cast(DType.float32) / 127.5 - 1.0
    return encoder(pixels.cast(picture_dtype(encoder.conv_in.weight))).cast(DType.float32)


def started(spec: VaeSpec, moments: Tensor, rows: Tensor, chosen: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
    """Moments of pictures to what image-to-image begins with; arguments as of `EncodeImage.forward`."""
    mean, logvar = F.split(F.permute(moments, [0, 3, 1, 2]), [spec.latent_channels] * 2, axis=1)
    clamped = unless_too_large(F.clamp(logvar, _LOGVAR_MIN, _LOGVAR_MAX), logvar)
    mean, deviation = (F.gather(each, rows, axis=0) for each in (mean, F.exp(clamped * 0.5)))
    sample = normalize(mean + deviation * chosen, spec.scaling_factor, spec.shift_factor)
    return _rounded(shares[0:1] * noise, noise) + _rounded(shares[1:2] * sample, sample)


def picture_squares(spec: VaeSpec, device: DeviceRef) -> TensorType:
    """Type of pictures as `EncodeImage` takes them."""
    side = spec.downscale
    return TensorType(DType.uint8, [IMAGES, LATENT_ROWS, side, LATENT_COLUMNS, side, RGB], device)


def start_types(spec: VaeSpec, device: DeviceRef) -> tuple[TensorType, ...]:
    """Types of what `EncodeImage` takes beside pictures."""
    latents = TensorType(DType.float32, [BATCH, spec.latent_channels, LATENT_ROWS, LATENT_COLUMNS], device)
    return TensorType(DType.int32, [BATCH], device), latents, latents, TensorType(DType.float32, [2], device)


def _rounded(product: Tensor, factor: Tensor) -> Tensor:
    """A product that is rounded before anything is added to it, as the reference's is: a choice cannot be fused."""
    return unless_too_large(product, factor)


class Decoder(Module[[Tensor], Tensor]):
    """Latents to a picture; the first width is the last of `block_out_channels`."""

    def __init__(self, spec: VaeSpec) -> None:
        widths = tuple(reversed(spec.block_out_channels))
        last = len(widths) - 1
        self.conv_in = convolution(spec.latent_channels, widths[0])
        self.mid_block = MiddleBlock(widths[0], spec.norm_num_groups)
        self.up_blocks = ModuleList(
            UpBlock(spec, widths[max(i - 1, 0)], width, upsamplers=int(i < last)) for i, width in enumerate(widths)
        )
        self.conv_norm_out = GroupNorm(widths[-1], spec.norm_num_groups)
        self.conv_out = convolution(widths[-1], RGB)

    def forward(self, latents: Tensor) -> Tensor:
        """[batch, latent_rows, latent_columns, latent_channels] -> [batch, rows, columns, 3]."""
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(x, norm=self.conv_norm_out)


class Encoder(Module[[Tensor], Tensor]):
    """A picture to the mean and the log variance of its latents."""

    def __init__(self, spec: VaeSpec) -> None:
        widths = spec.block_out_channels
        last = len(widths) - 1
        self.conv_in = convolution(RGB, widths[0])
        self.down_blocks = ModuleList(
            DownBlock(spec, widths[max(i - 1, 0)], width, downsamplers=int(i < last)) for i, width in enumerate(widths)
        )
        self.mid_block = MiddleBlock(widths[-1], spec.norm_num_groups)
        self.conv_norm_out = GroupNorm(widths[-1], spec.norm_num_groups)
        self.conv_out = convolution(widths[-1], 2 * spec.latent_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, rows, columns, 3] -> [batch, latent_rows, latent_columns, 2·latent_channels]."""
        x = self.conv_in(pixels)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.mid_block(x), norm=self.conv_norm_out)


class UpBlock(Module[[Tensor], Tensor]):
    """Residual blocks of one width, then twice the size in all but the last block."""

    def __init__(self, spec: VaeSpec, in_channels: int, out_channels: int, *, upsamplers: int) -> None:
        self.resnets = ModuleList(
            resnet_block(in_channels if i == 0 else out_channels, out_channels, spec.norm_num_groups)
            for i in range(spec.layers_per_block + 1)
        )
        self.upsamplers = ModuleList(Upsampler(out_channels) for _ in range(upsamplers))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, in_channels] -> [batch, rows, columns, out_channels] or twice the size."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class DownBlock(Module[[Tensor], Tensor]):
    """Residual blocks of one width, then half the size in all but the last block."""

    def __init__(self, spec: VaeSpec, in_channels: int, out_channels: int, *, downsamplers: int) -> None:
        self.resnets = ModuleList(
            resnet_block(in_channels if i == 0 else out_channels, out_channels, spec.norm_num_groups)
            for i in range(spec.layers_per_block)
        )
        self.downsamplers = ModuleList(Downsampler(out_channels) for _ in range(downsamplers))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, in_channels] -> [batch, rows, columns, out_channels] or half the size."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x
