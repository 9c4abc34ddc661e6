"""The autoencoder: image tokens to pictures, and pictures to latents."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType

from max_zimage.checkpoint.config import vae_spec
from max_zimage.checkpoint.expand import ParameterTable, vae_names
from max_zimage.compile.compiler import CompiledGraph, wait_for
from max_zimage.components.base import ZImageComponent
from max_zimage.components.vae_exact import ExactDecoder, ExactGraphs
from max_zimage.components.vae_tiles import Flags, Pixels, decode_blended, encode_blended, squares
from max_zimage.device.devices import upload
from max_zimage.graphs.model.vae import VaeSpec
from max_zimage.images.tiles import WHOLE, Floats, Tiling


class ZImageVaeModel(ZImageComponent):
    """Compiled autoencoder.

    Attributes:
        model: The decoder with unpacking, denormalization and quantization, `graphs.model.vae.DecodeLatents`.
        spec: Its shape.
    """

    model: CompiledGraph
    spec: VaeSpec
    keeps_weights = True

    def load_model(self) -> CompiledGraph:
        """Load the weights and define the decoder."""
        self.spec = vae_spec(self.config)
        self.model = self.graph("decode", self.provide())
        return self.model

    def names(self) -> ParameterTable:
        """The tensors that the component's files must hold."""
        return vae_names(vae_spec(self.config))

    @cached_property
    def encoder(self) -> CompiledGraph:
        """`graphs.model.vae.EncodeImage`, compiled when it is first asked for: only image-to-image needs it."""
        return self.graph("encode", self.provide())

    @cached_property
    def decode_tile(self) -> CompiledGraph:
        """`graphs.model.vae_tiles.DecodeTile`, compiled when it is first asked for, as those that follow."""
        return self.graph("decode_tile", self.provide())

    @cached_property
    def encode_tile(self) -> CompiledGraph:
        """`graphs.model.vae_tiles.EncodeTile`."""
        return self.graph("encode_tile", self.provide())

    @cached_property
    def start_from_moments(self) -> CompiledGraph:
        """`graphs.model.vae_tiles.StartFromMoments`."""
        return self.graph("start_from_moments")

    @cached_property
    def exact_graphs(self) -> ExactGraphs:
        """`graphs.model.vae_exact`, one for each part of the decoder."""
        weights = self.provide()
        return ExactGraphs.make(self.spec, lambda name: self.graph(name, weights))

    def expect(self, tiling: Tiling, height: int, width: int) -> None:
        """Compile what decoding pictures of this size takes, before their steps are taken."""
        if tiling.is_needed(height, width):
            wait_for(self.exact_graphs.every if tiling.kind == "exact" else [self.decode_tile])

    def decode_in_tiles(self, latents: Floats, tiling: Tiling) -> tuple[Pixels, Flags]:
        """Latents to pictures, tile by tile.

        Args:
            latents: float32 [batch, height/8, width/8, latent_channels], as the transformer has them.
            tiling: How; not "off".

        Returns:
            uint8 [batch, height, width, 3], and bool [batch]: whether a picture is finite.
        """
        self.expect(tiling, *(side * self.spec.downscale for side in latents.shape[1:3]))
        with np.errstate(all="ignore"):  # pictures that are not finite are told by their flags
            if tiling.kind == "blend":
                return decode_blended(self, latents, tiling)
            dtype = DType.float32 if self.device.is_host else self.dtype
            decoder = ExactDecoder(self.spec, self.exact_graphs, self.device, dtype, tiling)
            pictures, finite = zip(*(decoder.decode(each) for each in latents), strict=True)
            return np.stack(pictures), np.array(finite)

    def encode(self, image: Buffer, noise: Buffer) -> Buffer:
        """Pictures to latents.

        Args:
            image: uint8 [batch, height, width, 3].
            noise: float32 [batch, latent_channels, height/8, width/8], standard normal; zeros give the posterior's
                mode.

        Returns:
            float32 like `noise`, scaled as the transformer wants them.

        Raises:
            ValueError: If a side of the pictures is not a multiple of 8.
        """
        self.enter()
        batch = int(image.shape[0])
        none = Buffer.zeros(tuple(map(int, noise.shape)), DType.float32, self.device)
        return self._mixed(image, np.arange(batch), noise, none, np.array([0, 1], np.float32))

    def start(self, image: Pixels, chosen: Buffer, noise: Buffer, sigma: np.float32, tiling: Tiling = WHOLE) -> Buffer:
        """What image-to-image begins with, sigma · noise + (1 - sigma) · latents of the picture.

        Args:
            image: uint8 [1, height, width, 3], the picture that all begin with, on the host; it is encoded once.
            chosen: float32 [batch, latent_channels, height/8, width/8], what chooses a sample; zeros take the mode.
            noise: Like `chosen`.
            sigma: The noise level.
            tiling: Whether the picture is encoded in tiles: if it is larger than one, and they are blended.

        Returns:
            float32 like `noise`, on the autoencoder's device.
        """
        self.enter()
        shares = np.array([sigma, np.float32(1) - sigma], np.float32)
        rows = np.zeros(int(noise.shape[0]), np.int32)
        if tiling.kind == "blend" and tiling.is_needed(*image.shape[1:3]):
            with np.errstate(all="ignore"):  # the caller looks at what comes out
                moments = encode_blended(self, image[0], tiling)
            given = (upload(each, self.device) for each in (moments, rows))
            return self.start_from_moments(*given, chosen, noise, upload(shares, self.device))[0]
        return self._mixed(upload(image, self.device), rows, chosen, noise, shares)

    def _mixed(
        self,
        image: Buffer,
        rows: npt.NDArray[Any],
        chosen: Buffer,
        noise: Buffer,
        shares: npt.NDArray[np.float32],
    ) -> Buffer:
        places, weights = upload(rows.astype(np.int32), self.device), upload(shares, self.device)
        return self.encoder(squares(image, self.spec.downscale), places, chosen, noise, weights)[0]
