"""Small pictures of unfinished work: latents to colours by a linear map, no decoder.

The map is fitted for the checkpoint's own autoencoder when the worker starts: a picture of squares in known colours is
encoded, and least squares find how much of each latent channel a colour takes. A preview has one pixel a latent pixel,
an eighth of the picture's sides.
"""

from __future__ import annotations

import io
import logging
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from max_zimage.device.devices import download, upload
from max_zimage.pipeline.zimage import ZImagePipeline

_log = logging.getLogger("max_zimage.serving")

_SQUARE, _SQUARES = 32, 12  # pixels a side, squares a side: 144 colours
_INNER = slice(1, 3)  # of a square's four latent pixels a side; those at the rim see their neighbours' colours


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """The steps after which previews are drawn: spread evenly, and none after the last, when the picture is there.

    >>> preview_steps(8, 3)
    (2, 4, 6)
    """
    wanted = min(previews, steps - 1)
    return tuple(round(steps * (number + 1) / (wanted + 1)) for number in range(wanted))


class Previewer:
    """Draws previews for one checkpoint."""

    def __init__(self, pipeline: ZImagePipeline) -> None:
        self._pipeline = pipeline

    def fitted(self) -> Self:
        """The same, with the map found."""
        _ = self.weights
        return self

    @cached_property
    def weights(self) -> npt.NDArray[np.float32]:
        """The map, float32 [latent channels + 1, 3], to colours in [-1, 1]; the last row is the constant.

        NaN where the encoder makes no finite latents: then there are no previews.
        """
        colours = np.random.default_rng(0).integers(0, 256, (_SQUARES, _SQUARES, 3), np.uint8)
        picture = colours.repeat(_SQUARE, 0).repeat(_SQUARE, 1)[None]
        channels, side = self._pipeline.transformer.spec.in_channels, picture.shape[1] // 8
        device, noise = self._pipeline.vae.device, np.zeros((1, channels, side, side), np.float32)
        latents = download(self._pipeline.vae.encode(upload(picture, device), upload(noise, device)))[0]
        if not np.isfinite(latents).all():
            _log.warning("no previews and no image-to-image: the autoencoder's encoder makes NaN or infinity")
            return np.full((channels + 1, 3), np.nan, np.float32)
        cells = latents.reshape(channels, _SQUARES, _SQUARE // 8, _SQUARES, _SQUARE // 8)[:, :, _INNER, :, _INNER]
        samples = cells.transpose(1, 3, 2, 4, 0).reshape(-1, channels)
        targets = (colours.reshape(-1, 3) / 127.5 - 1).repeat(len(samples) // _SQUARES**2, axis=0)
        inputs = np.hstack([samples.astype(np.float64), np.ones((len(samples), 1))])
        return np.linalg.lstsq(inputs, targets, rcond=None)[0].astype(np.float32)

    def draw(self, tokens: npt.NDArray[np.float32], rows: int, columns: int) -> list[bytes | None]:
        """Draw latents.

        Args:
            tokens: float32 [pictures, image tokens, 4 · channels], packed.
            rows: Height in tokens.
            columns: Width in tokens.

        Returns:
            One PNG a picture, 2 · rows by 2 · columns pixels; None for one that is not finite.
        """
        channels = tokens.shape[-1] // 4
        squares = tokens.reshape(-1, rows, columns, 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        values = squares.reshape(-1, 2 * rows, 2 * columns, channels) @ self.weights[:-1] + self.weights[-1]
        return [_png(picture) if np.isfinite(picture).all() else None for picture in (values + 1) * 127.5]


def _png(pixels: npt.NDArray[np.float32]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8)).save(content, format="PNG")
    return content.getvalue()
