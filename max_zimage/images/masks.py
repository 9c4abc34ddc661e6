"""Masks that requests bring: which part of a picture is drawn anew. Two conventions, apart by the field they come in.

A mask in greys says it by brightness, white is drawn anew. A mask in transparency, as OpenAI's API has it, is a picture
whose transparent part is drawn anew; its colours count for nothing.

Reference: diffusers image_processor.py (mask processor); OpenAI's Images API, create image edit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from max_zimage.errors import Item, RequestError
from max_zimage.images.colours import upright_alpha
from max_zimage.images.files import check_size, damaged, open_image
from max_zimage.images.read import MAX_PIXELS, decode_image, picture_pixels

Pixels = npt.NDArray[np.uint8]

_TRANSPARENT = (
    "{field} has transparent pixels, and goes by brightness: white is drawn anew, black is kept; put it on a "
    "background before"
)


def greys(image: Pixels) -> Pixels:
    """The brightness of colours as Pillow has it: uint8 [height, width, 3] to [height, width]."""
    return np.asarray(Image.fromarray(image).convert("L"))


def mixed(drawn: Pixels, image: Pixels, mask: Pixels) -> Pixels:
    """Two pictures as one, each number rounded to the nearest level.

    Args:
        drawn: uint8 [height, width, 3].
        image: Like `drawn`.
        mask: uint8 [height, width], how much of `drawn` shows: 255 for nothing else.

    Returns:
        Like `drawn`.
    """
    share = mask[..., None].astype(np.uint32)
    return np.asarray((share * drawn + (255 - share) * image + 127) // 255, np.uint8)


def mask_of(name: str, value: object, largest: tuple[int, int]) -> Pixels:
    """A mask in greys, from one of Pillow's pictures or an array.

    Args:
        name: What messages call it.
        value: What was given.
        largest: Height and width whose product it may have in pixels.

    Returns:
        uint8 [height, width].

    Raises:
        RequestError: If it is none of these, or has transparent pixels.
    """
    if isinstance(value, Image.Image):
        try:
            return greys(picture_pixels(name, value, largest[0] * largest[1]))
        except RequestError as error:
            raise RequestError.of(name, _TRANSPARENT) if _shows_through(value) else error from None
    wanted = "{field} must be a PIL image or an array [height, width] of uint8 or bool, got {given}; {remedy}"
    if not isinstance(value, np.ndarray):
        remedy = "open it with PIL.Image.open" if isinstance(value, (str, bytes, Path)) else "convert it before"
        raise RequestError.of(name, wanted, given=type(value).__name__, remedy=remedy)
    if value.dtype == np.bool_ and value.ndim == 2 and value.size:
        return np.asarray(value * np.uint8(255), np.uint8)
    if value.dtype != np.uint8 or value.ndim != 2 or 0 in value.shape:
        remedy = "white, 255, is drawn anew"
        if value.dtype != np.uint8:
            remedy = "scale it to 0 to 255 and convert it with .astype(numpy.uint8)"
        raise RequestError.of(name, wanted, given=f"{value.dtype} {list(value.shape)}", remedy=remedy)
    return value


def _shows_through(picture: Image.Image) -> bool:
    """Whether a picture has transparent pixels; one that is damaged has none that are known."""
    try:
        found = upright_alpha(picture)
    except Exception:  # Pillow's decoders raise nearly anything on damaged data
        return False
    return found is not None and bool(found.min() < 255)


def decode_mask(name: str | Item, content: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """A mask in greys from a file's bytes; arguments and errors are those of `decode_image`.

    Returns:
        uint8 [height, width].
    """
    try:
        return greys(decode_image(name, content, max_pixels))
    except RequestError:
        if alpha(content, max_pixels) is None:
            raise
    raise RequestError.of(name, _TRANSPARENT)


def decode_alpha_mask(name: str | Item, content: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """A mask in transparency from a file's bytes: what is transparent is drawn anew.

    Returns:
        uint8 [height, width], 255 where it is transparent.

    Raises:
        RequestError: If the file does not do, or is opaque all over.
    """
    picture, kind = open_image(name, content, max_pixels)
    with picture:
        check_size(name, *picture.size, max_pixels)
        try:
            picture.load()
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
            raise damaged(name, kind, error) from error
        found = upright_alpha(picture)
    if found is None or found.min() == 255:
        message = (
            "{field} has no transparent pixels, which are what is drawn anew; a mask in black and white goes into "
            "{name[mask_image]}"
        )
        raise RequestError.of(name, message)
    return 255 - found


def alpha(content: bytes, max_pixels: int = MAX_PIXELS) -> Pixels | None:
    """The mask that a file is by its transparency, or None if it is none."""
    try:
        return decode_alpha_mask("mask", content, max_pixels)
    except RequestError:
        return None
