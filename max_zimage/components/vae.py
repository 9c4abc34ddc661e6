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
from max_zimage.compile.compiler import CompiledGraph
from max_zimage.components.base import ZImageComponent
from max_zimage.device.devices import upload
from max_zimage.graphs.model.vae import VaeSpec


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
        batch = int(image.shape[0])
        none = Buffer.zeros(tuple(map(int, noise.shape)), DType.float32, self.device)
        return self._mixed(image, np.arange(batch), noise, none, np.array([0, 1], np.float32))

    def start(self, image: Buffer, chosen: Buffer, noise: Buffer, sigma: np.float32) -> Buffer:
        """What image-to-image begins with, sigma · noise + (1 - sigma) · latents of the picture.

        Args:
            image: uint8 [1, height, width, 3], the picture that all begin with; it is encoded once.
            chosen: float32 [batch, latent_channels, height/8, width/8], what chooses a sample; zeros take the mode.
            noise: Like `chosen`.
            sigma: The noise level.

        Returns:
            float32 like `noise`.
        """
        shares = np.array([sigma, np.float32(1) - sigma], np.float32)
        return self._mixed(image, np.zeros(int(noise.shape[0])), chosen, noise, shares)

    def _mixed(
        self,
        image: Buffer,
        rows: npt.NDArray[Any],
        chosen: Buffer,
        noise: Buffer,
        shares: npt.NDArray[np.float32],
    ) -> Buffer:
        side = self.spec.downscale
        images, height, width, channels = map(int, image.shape)
        if height % side or width % side:
            raise ValueError(f"the sides of a picture must be multiples of {side}, got {height} x {width}")
        squares = image.view(DType.uint8, (images, height // side, side, width // side, side, channels))
        places, weights = upload(rows.astype(np.int32), self.device), upload(shares, self.device)
        return self.encoder(squares, places, chosen, noise, weights)[0]
