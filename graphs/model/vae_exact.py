"""The decoder in tiles that together make what the whole decoder makes: a few layers at a time over all tiles.

    middle: latents -> conv -> middle block, of the whole picture at an eighth of its sides
    unit:   a residual block, behind an enlargement where its block begins with one
            upsample: tile -> twice the size, conv, and its statistics
            first:    norm, silu, conv, and its statistics
            second:   norm, silu, conv + shortcut, and its statistics
    pixels: norm, silu, conv -> uint8

What a tile cannot know are the statistics of norms, which are over the whole picture: every graph takes those of its
norm, and gives mean and variance of each channel of what it makes, of which those of the whole picture are put
together. A tile has a margin of its neighbours' pixels, as wide as convolutions reach, that is cut away afterwards; at
the picture's own border there is none, and convolutions see their zeros as ever.

Reference: diffusers models/autoencoders/vae.py (Decoder), whose result this is.
"""

from __future__ import annotations

from typing import Any

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, Dim, TensorType

from max_zimage.graphs.dims import BATCH
from max_zimage.graphs.model.latents import denormalize
from max_zimage.graphs.model.vae import LATENT_COLUMNS, LATENT_ROWS, RGB, VaeSpec, energy, quantize
from max_zimage.graphs.model.vae_blocks import (
    GivenNorm,
    GroupNorm,
    MiddleBlock,
    Upsampler,
    convolution,
    picture_dtype,
)
from max_zimage.graphs.model.vae_units import Place, enlarged_units, units_of

ROWS, COLUMNS = "rows", "columns"


class ExactMiddle(Module[[Tensor], tuple[Tensor, Tensor, Tensor]]):
    """Latents to what the first unit takes."""

    def __init__(self, spec: VaeSpec) -> None:
        self.spec = spec
        self.decoder = Place()
        width = spec.block_out_channels[-1]
        self.decoder.put("conv_in", convolution(spec.latent_channels, width))
        self.decoder.put("mid_block", MiddleBlock(width, spec.norm_num_groups))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the part that sees the whole picture.

        Args:
            latents: float32 [batch, latent_rows, latent_columns, latent_channels], as the transformer has them.

        Returns:
            [batch, latent_rows, latent_columns, channels], float32 [batch, 2, channels] as of `measured`, and float32
            [batch], which is finite where all latents are.
        """
        decoder: Any = self.decoder
        own = denormalize(latents, self.spec.scaling_factor, self.spec.shift_factor)
        x = decoder.mid_block(decoder.conv_in(own.cast(picture_dtype(decoder.conv_in.weight))))
        x_f32 = x.cast(DType.float32)
        mean = F.mean(F.mean(x_f32, axis=2), axis=1)
        centred = x_f32 - mean
        return x, _joined(mean, F.mean(F.mean(centred * centred, axis=2), axis=1)), energy(latents)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (TensorType(DType.float32, (BATCH, LATENT_ROWS, LATENT_COLUMNS, self.spec.latent_channels), device),)


class ExactUpsample(Module[..., tuple[Tensor, Tensor]]):
    """The enlargement before a unit."""

    def __init__(self, spec: VaeSpec, unit: int | None = None) -> None:
        self.unit = units_of(spec)[enlarged_units(spec)[-1] if unit is None else unit]
        self.path = f"up_blocks.{self.unit.block - 1}.upsamplers.0"
        self.decoder = Place()
        self.decoder.put(self.path, Upsampler(self.unit.inputs))

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Enlarge.

        Args:
            x: [batch, rows, columns, inputs].
            rows: float32 [rows], 1 for the tile's own and 0 for its margins'.
            columns: float32 [columns], the same.

        Returns:
            [batch, 2·rows, 2·columns, inputs], and its statistics, see `measured`.
        """
        y = self.decoder.at(self.path)(x)
        return y, measured(y, _twice(rows), _twice(columns))

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (_tile(self.unit.inputs, dtype, device), *_shares(device))


class ExactFirst(Module[..., tuple[Tensor, Tensor]]):
    """The first convolution of a unit."""

    def __init__(self, spec: VaeSpec, unit: int = -1) -> None:
        self.unit = units_of(spec)[unit]
        self.decoder = Place()
        layers: dict[str, Module[..., Any]] = {
            "norm1": GroupNorm(self.unit.inputs, spec.norm_num_groups),
            "conv1": convolution(self.unit.inputs, self.unit.outputs),
        }
        for name, layer in layers.items():
            self.decoder.put(f"{self.unit.path}.{name}", layer)

    def forward(self, x: Tensor, statistics: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize and convolve.

        Args:
            x: [batch, rows, columns, inputs].
            statistics: float32 [batch, 2, inputs] of the whole picture, see `GivenNorm`.
            rows: float32 [rows], 1 for the tile's own and 0 for its margins'.
            columns: float32 [columns], the same.

        Returns:
            [batch, rows, columns, outputs], and its statistics, see `measured`.
        """
        layers = self.decoder.at(self.unit.path)
        y = layers.conv1(x, norm=GivenNorm(layers.norm1, statistics))
        return y, measured(y, rows, columns)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        channels = self.unit.inputs
        return _tile(channels, dtype, device), _statistics(channels, device), *_shares(device)


class ExactSecond(Module[..., tuple[Tensor, Tensor]]):
    """The second convolution of a unit, and its shortcut."""

    def __init__(self, spec: VaeSpec, unit: int = -1) -> None:
        self.unit = units_of(spec)[unit]
        self.decoder = Place()
        inputs, outputs = self.unit.inputs, self.unit.outputs
        layers: dict[str, Module[..., Any]] = {
            "norm2": GroupNorm(outputs, spec.norm_num_groups),
            "conv2": convolution(outputs, outputs),
        }
        if inputs != outputs:
            layers["conv_shortcut"] = convolution(inputs, outputs, kernel=1)
        for name, layer in layers.items():
            self.decoder.put(f"{self.unit.path}.{name}", layer)

    def forward(
        self, x: Tensor, between: Tensor, statistics: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Normalize, convolve and add.

        Args:
            x: [batch, rows, columns, inputs], what the unit takes.
            between: [batch, rows, columns, outputs], what its first convolution makes.
            statistics: float32 [batch, 2, outputs] of that over the whole picture, see `GivenNorm`.
            rows: float32 [rows], 1 for the tile's own and 0 for its margins'.
            columns: float32 [columns], the same.

        Returns:
            [batch, rows, columns, outputs], and its statistics, see `measured`.
        """
        layers = self.decoder.at(self.unit.path)
        shortcut = x if self.unit.inputs == self.unit.outputs else layers.conv_shortcut(x)
        y = layers.conv2(between, norm=GivenNorm(layers.norm2, statistics), shortcut=shortcut)
        return y, measured(y, rows, columns)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        inputs, outputs = self.unit.inputs, self.unit.outputs
        tiles = _tile(inputs, dtype, device), _tile(outputs, dtype, device)
        return *tiles, _statistics(outputs, device), *_shares(device)


class ExactPixels(Module[..., tuple[Tensor, Tensor]]):
    """What the last unit makes to pixels."""

    def __init__(self, spec: VaeSpec) -> None:
        self.width = spec.block_out_channels[0]
        self.decoder = Place()
        self.decoder.put("conv_norm_out", GroupNorm(self.width, spec.norm_num_groups))
        self.decoder.put("conv_out", convolution(self.width, RGB))

    def forward(self, x: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize, convolve and round.

        Args:
            x: [batch, rows, columns, channels].
            statistics: float32 [batch, 2, channels] of the whole picture, see `GivenNorm`.

        Returns:
            uint8 [batch, rows, columns, 3], and float32 [batch], which is finite where all pixels are.
        """
        decoder: Any = self.decoder
        pixels = decoder.conv_out(x, norm=GivenNorm(decoder.conv_norm_out, statistics)).cast(DType.float32)
        return quantize(pixels), energy(pixels)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return _tile(self.width, dtype, device), _statistics(self.width, device)


def measured(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mean and variance of each channel over the tile's own pixels, in float32.

    Two passes, so that nothing is lost where a mean is large beside its deviation; sums over columns, then over rows.

    Args:
        x: [batch, rows, columns, channels].
        rows: float32 [rows], 1 for what is counted, 0 for what is not.
        columns: float32 [columns], the same.

    Returns:
        float32 [batch, 2, channels].
    """
    x_f32, (_, height, width, _) = x.cast(DType.float32), x.shape
    down = F.reshape(rows / F.sum(rows, axis=0), [1, height, 1, 1])
    across = F.reshape(columns / F.sum(columns, axis=0), [1, 1, width, 1])

    def mean(values: Tensor) -> Tensor:
        return F.sum(F.sum(values * across, axis=2) * down, axis=1)

    middle = mean(x_f32)
    centred = x_f32 - middle
    return _joined(middle, mean(centred * centred))


def _joined(mean: Tensor, variance: Tensor) -> Tensor:
    """[batch, 1, 1, channels] twice to [batch, 2, channels]."""
    batch, _, _, channels = mean.shape
    return F.concat([F.reshape(each, [batch, 1, channels]) for each in (mean, variance)], axis=1)


def _twice(shares: Tensor) -> Tensor:
    """Each of them twice, as an enlargement does with pixels."""
    (length,) = shares.shape
    return F.reshape(F.broadcast_to(F.reshape(shares, [length, 1]), [length, 2]), [length * 2])


def _tile(channels: int, dtype: DType, device: DeviceRef) -> TensorType:
    """Pictures between layers: float32 on a CPU, see `picture_dtype`."""
    shape: list[str | int | Dim] = [BATCH, ROWS, COLUMNS, channels]
    return TensorType(DType.float32 if device.is_cpu() else dtype, shape, device)


def _statistics(channels: int, device: DeviceRef) -> TensorType:
    return TensorType(DType.float32, [BATCH, 2, channels], device)


def _shares(device: DeviceRef) -> tuple[TensorType, TensorType]:
    return TensorType(DType.float32, [ROWS], device), TensorType(DType.float32, [COLUMNS], device)
