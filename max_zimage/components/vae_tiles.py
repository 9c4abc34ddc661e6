"""The autoencoder over tiles that fade into each other, as diffusers does it.

A row of tiles runs on the device, then comes to the host, where it is blended with the row above: the device holds one
tile's activations, and the host two rows of float32 pixels. Pictures go one by one.

Reference: diffusers models/autoencoders/autoencoder_kl.py (tiled_decode, _tiled_encode).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType

from max_zimage.compile.compiler import CompiledGraph
from max_zimage.device.devices import download, upload
from max_zimage.graphs.model.vae import VaeSpec
from max_zimage.images.tiles import Floats, Tiling, blended, starts

Pixels = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


class TiledVae(Protocol):
    """What is needed of `max_zimage.components.vae.ZImageVaeModel`."""

    spec: VaeSpec
    device: Device

    @property
    def decode_tile(self) -> CompiledGraph:
        """`graphs.model.vae_tiles.DecodeTile`."""

    @property
    def encode_tile(self) -> CompiledGraph:
        """`graphs.model.vae_tiles.EncodeTile`."""


def decode_blended(vae: TiledVae, latents: Floats, tiling: Tiling) -> tuple[Pixels, Flags]:
    """Latents to pictures.

    Args:
        vae: The autoencoder.
        latents: float32 [batch, latent_rows, latent_columns, latent_channels], as the transformer has them.
        tiling: Size and overlap.

    Returns:
        uint8 [batch, rows, columns, 3], rounded after blending, and bool [batch]: whether all numbers were finite.
    """
    side = vae.spec.downscale
    batch, rows, columns, _ = latents.shape
    pixels = np.empty((batch, rows * side, columns * side, 3), np.uint8)
    finite = np.ones(batch, np.bool_)
    for index in range(batch):
        place = 0
        for strip in blended(decoded_rows(vae, latents[index], tiling, finite[index : index + 1]), *_of(tiling)):
            pixels[index, place : place + len(strip)] = quantized(strip)
            place += len(strip)
    return pixels, finite


def _of(tiling: Tiling, side: int = 1) -> tuple[int, int]:
    return tiling.size // side, tiling.overlap // side


def decoded_rows(vae: TiledVae, latents: Floats, tiling: Tiling, finite: Flags) -> Iterator[list[Floats]]:
    """Rows of decoded tiles of one picture; clears the flag where one is not finite."""
    tile, overlap = _of(tiling, vae.spec.downscale)
    rows, columns, _ = latents.shape
    for top in starts(rows, tile, overlap):
        parts = [latents[None, top : top + tile, left : left + tile] for left in starts(columns, tile, overlap)]
        row = [vae.decode_tile(upload(part, vae.device)) for part in parts]
        finite &= np.isfinite([download(energy) for _, energy in row]).all()
        yield [np.array(download(pixels)[0]) for pixels, _ in row]


def encode_blended(vae: TiledVae, image: Pixels, tiling: Tiling) -> Floats:
    """A picture to the moments of its latents.

    Args:
        vae: The autoencoder.
        image: uint8 [height, width, 3].
        tiling: Size and overlap.

    Returns:
        float32 [1, latent_rows, latent_columns, 2·latent_channels]: mean and log variance.
    """
    strips = blended(_encoded_rows(vae, image, tiling), *_of(tiling, vae.spec.downscale))
    return np.concatenate(list(strips))[None]


def _encoded_rows(vae: TiledVae, image: Pixels, tiling: Tiling) -> Iterator[list[Floats]]:
    tile, overlap = _of(tiling)
    height, width, _ = image.shape
    for top in starts(height, tile, overlap):
        parts = [image[None, top : top + tile, left : left + tile] for left in starts(width, tile, overlap)]
        row = [vae.encode_tile(squares(upload(part, vae.device), vae.spec.downscale))[0] for part in parts]
        yield [np.array(download(moments)[0]) for moments in row]


def squares(image: Buffer, side: int) -> Buffer:
    """Pictures, uint8 [images, height, width, 3], as `graphs.model.vae.EncodeImage` takes them; nothing moves.

    Raises:
        ValueError: If a side of the pictures is no multiple.
    """
    images, height, width, channels = map(int, image.shape)
    if height % side or width % side:
        raise ValueError(f"the sides of a picture must be multiples of {side}, got {height} x {width}")
    return image.view(DType.uint8, (images, height // side, side, width // side, side, channels))


def quantized(pixels: Floats) -> Pixels:
    """float32 pixels, black at -1 and white at 1, to uint8 as `graphs.model.vae.quantize` does; NaN is black."""
    unit = np.clip(pixels * np.float32(0.5) + np.float32(0.5), 0, 1)
    return np.nan_to_num(np.round(unit * np.float32(255))).astype(np.uint8)
