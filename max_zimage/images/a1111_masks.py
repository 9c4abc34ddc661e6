"""Masks and what lies under them as AUTOMATIC1111's `img2img` has it: a blurred border, colours from around the mask.

A blurred mask is drawn anew where it is at least 128, and the picture fades into the image across the border.

Reference: stable-diffusion-webui modules/processing.py (StableDiffusionProcessingImg2Img), modules/masking.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]

_RADII = (64, 16, 4, 1)
"""Pixels over which colours are carried into a mask, from far to near."""


def blurred(mask: Pixels, across: float, down: float) -> Pixels:
    """A mask with a soft border.

    Args:
        mask: uint8 [height, width].
        across: Standard deviation in pixels.
        down: The same from row to row.

    Returns:
        uint8 [height, width].
    """
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur((across, down))))


def filled(image: Pixels, mask: Pixels) -> Pixels:
    """An image whose masked part has colours from around it, the nearer ones above the farther.

    Args:
        image: uint8 [height, width, 3].
        mask: uint8 [rows, columns], 255 for what is to be filled; resized where it has another size.

    Returns:
        uint8 [height, width, 3], as it was where the mask is 0.
    """
    size = image.shape[1], image.shape[0]
    wide = Image.fromarray(mask).resize(size, Image.Resampling.LANCZOS) if size != mask.shape[::-1] else mask
    known = 255 - np.asarray(wide)
    weights = known.astype(np.float64) / 255
    total = weights.sum()
    mean = (image * weights[..., None]).sum((0, 1)) / total if total else np.full(3, 127.5)
    ground = Image.new("RGBA", size, (*(round(value) for value in mean), 255))
    # Colours count as much as they are seen, which is what Pillow calls premultiplied.
    seen = Image.fromarray(np.dstack([image, known])).convert("RGBa")
    for radius in _RADII:
        ground.alpha_composite(seen.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    ground.alpha_composite(seen.convert("RGBA"))
    return np.where(known[..., None] == 255, image, np.asarray(ground.convert("RGB")))
