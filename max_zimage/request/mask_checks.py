"""Masks and margins of a request: in the picture's size, known again by a digest, and whether they make sense."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

from max_zimage.errors import Problem, RequestError, RequestWarning
from max_zimage.images.read import resized
from max_zimage.request.facts import RequestFacts

Pixels = npt.NDArray[np.uint8]
Margins = tuple[int, ...]

_LATENT, _WHITE = 8, 128
"""Pixels of a latent's side, and the grey from which on it is drawn anew; see `max_zimage.pipeline.inpainting`."""


def check_mask(asked: RequestFacts) -> None:
    """Refuse what has nothing to act on."""
    if asked.image is None:
        for name in ("mask_image", "outpaint"):
            if getattr(asked, name) is not None:
                raise RequestError.of(name, "{field} is given without an image; give the image too, or leave it out")
    if asked.soft_mask and asked.mask_image is None:
        message = "{field} goes by the greys of {name[mask_image]}, and there is none; give it, or leave {field} out"
        raise RequestError.of("soft_mask", message)
    if not asked.composite:
        return
    if not asked.is_masked:
        message = "{field} puts back what {name[mask_image]} or {name[outpaint]} keep; give one, or leave {field} out"
        raise RequestError.of("composite", message)
    if asked.output_type == "latent":
        raise RequestError.of("composite", "{field} puts pixels back, and latents have none; leave one of the two out")


def warn_of_kept_picture(asked: RequestFacts, mask: Pixels | None) -> None:
    """Say so where a mask keeps all of the image.

    Args:
        asked: The request.
        mask: uint8 [height, width], in the picture's size; or None.
    """
    if mask is None or (mask.any() if asked.soft_mask else (mask[::_LATENT, ::_LATENT] >= _WHITE).any()):
        return
    name, remedy = "mask_image", "make white parts at least {side} pixels wide, or set {name[soft_mask]}"
    if asked.mask_image is None:
        name, remedy = "outpaint", "add at least {side} pixels"
    message = "{field} has nothing drawn anew: "
    if mask.any():
        message += (
            "of {side}x{side} pixels the one at the upper left counts, and none of those is {white} or more; " + remedy
        )
    else:
        message += "it is black all over, and white is drawn anew"
    warnings.warn(RequestWarning(Problem.of(name, message, side=_LATENT, white=_WHITE)), stacklevel=3)


def framed(image: Pixels, margins: Margins | None, height: int, width: int) -> Pixels:
    """An image in a picture's size, with margins around it that go on with the pixels of its edge.

    Args:
        image: uint8 [rows, columns, 3].
        margins: In pixels of the image, to the left, at the top, to the right and at the bottom; or None.
        height: Of the picture.
        width: Of the picture.

    Returns:
        uint8 [height, width, 3].
    """
    left, top, right, bottom = margins or (0, 0, 0, 0)
    whole = image if margins is None else np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge")
    return whole if whole.shape[:2] == (height, width) else resized(whole, height, width)


def framed_size(image: Pixels, margins: Margins | None) -> tuple[int, int]:
    """Height and width of an image with margins around it."""
    left, top, right, bottom = margins or (0, 0, 0, 0)
    return image.shape[0] + top + bottom, image.shape[1] + left + right


def picture_mask(mask: Pixels | None, image: Pixels, margins: Margins | None, height: int, width: int) -> Pixels:
    """What is drawn anew of the whole picture.

    Args:
        mask: uint8 [rows, columns], for the image without margins; None where these are all.
        image: uint8 [rows, columns, 3].
        margins: Around the image, drawn anew.
        height: Of the picture.
        width: Of the picture.

    Returns:
        uint8 [height, width]; a mask of another size is resized with Lanczos' filter, as diffusers does.
    """
    if margins is not None:
        rows, columns, _ = image.shape
        inner = np.zeros((rows, columns), np.uint8) if mask is None else _resized(mask, rows, columns)
        left, top, right, bottom = margins
        mask = np.pad(inner, ((top, bottom), (left, right)), constant_values=255)
    if mask is None:
        raise ValueError("a mask or margins are needed")
    return _resized(mask, height, width)


def mask_digest(mask: Pixels) -> str:
    """What tells a mask from others, whatever file it comes in.

    Args:
        mask: uint8 [height, width], before any resizing.

    Returns:
        "sha256:" and the hexadecimal SHA-256 of height and width as in "mask 80x112:" and the greys in C order.
    """
    height, width = mask.shape
    found = hashlib.sha256(f"mask {height}x{width}:".encode())
    found.update(np.ascontiguousarray(mask).data)
    return f"sha256:{found.hexdigest()}"


def _resized(mask: Pixels, height: int, width: int) -> Pixels:
    if mask.shape == (height, width):
        return mask
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.LANCZOS))
