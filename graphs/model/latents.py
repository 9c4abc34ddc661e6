"""Latents between the autoencoder's pictures and the transformer's tokens.

    pack:   [batch, channels, 2·rows, 2·columns] -> [batch, rows·columns, 4·channels], one token a 2x2 square
    unpack: the inverse, channels last, as the autoencoder's convolutions want them

Graphs take the squares as axes of their own, because a symbolic size cannot be asked to be even: the caller gives a
view of the same memory, [batch, channels, rows, 2, columns, 2] of latents and [batch, rows, columns, 2, 2, channels] of
tokens.

Reference: diffusers models/transformers/transformer_z_image.py, patchify and unpatchify;
pipelines/z_image/pipeline_z_image.py, decoding.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, PATCH

TOKEN_ROWS = "token_rows"
TOKEN_COLUMNS = "token_columns"


class PackLatents(Module[[Tensor], Tensor]):
    """Latents, channels first, to image tokens."""

    def __init__(self, latent_channels: int) -> None:
        self.latent_channels = latent_channels

    def forward(self, latents: Tensor) -> Tensor:
        """Patchify.

        Args:
            latents: float32 [batch, channels, token_rows, 2, token_columns, 2].

        Returns:
            float32 [batch, token_rows·token_columns, 4·channels].
        """
        batch, channels, rows, _, columns, _ = latents.shape
        squares = F.permute(latents, [0, 2, 4, 3, 5, 1])
        return F.reshape(squares, [batch, rows * columns, PATCH * PATCH * channels])

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        shape = (BATCH, self.latent_channels, TOKEN_ROWS, PATCH, TOKEN_COLUMNS, PATCH)
        return (TensorType(DType.float32, shape, device),)


def token_squares(latent_channels: int, device: DeviceRef) -> TensorType:
    """Type of image tokens as `unpack` takes them: float32 [batch, token_rows, token_columns, 2, 2, channels].

    Args:
        latent_channels: Channels of a latent pixel.
        device: Where the graph runs.
    """
    return TensorType(DType.float32, [BATCH, TOKEN_ROWS, TOKEN_COLUMNS, PATCH, PATCH, latent_channels], device)


def unpack(tokens: Tensor) -> Tensor:
    """Image tokens to latents, channels last.

    Args:
        tokens: [batch, token_rows, token_columns, 2, 2, channels].

    Returns:
        [batch, 2·token_rows, 2·token_columns, channels].
    """
    batch, rows, columns, _, _, channels = tokens.shape
    return F.reshape(F.permute(tokens, [0, 1, 3, 2, 4, 5]), [batch, rows * PATCH, columns * PATCH, channels])


def denormalize(latents: Tensor, scaling_factor: float, shift_factor: float) -> Tensor:
    """Latents as the autoencoder has them: latents / scaling_factor + shift_factor, in the latents' dtype."""
    return latents / scaling_factor + shift_factor


def normalize(latents: Tensor, scaling_factor: float, shift_factor: float) -> Tensor:
    """Latents as the transformer has them: (latents - shift_factor) · scaling_factor, in the latents' dtype."""
    return (latents - shift_factor) * scaling_factor
