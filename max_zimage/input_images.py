"""Images that requests bring: read from bytes that nobody vouches for.

The header is read and judged before a pixel is decoded: a small file may claim gigabytes. Nothing here opens a path or
an address.
"""

from __future__ import annotations

import base64
import binascii
import io
import re

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from max_zimage.request_checks import RequestError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 4096 * 4096
"""Height times width of an image, where the server says nothing else."""

_DATA_URL = re.compile(r"data:image/[a-z+.-]+;base64,", re.IGNORECASE)


def image_of_data_url(name: str, url: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read an image from a data URL; see `decode_image`.

    Args:
        name: What messages call it.
        url: "data:image/png;base64,…".
        max_pixels: Height times width.

    Raises:
        RequestError: If it is no such URL, or the image does not do.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise RequestError(f'{name} must be a data URL, "data:image/png;base64,...", got {url[:40]!r}')
    try:
        content = base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{name} is no valid base64 ({error}); encode the file's bytes again") from error
    return decode_image(name, content, max_pixels)


def decode_image(name: str, content: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read an image from a file's bytes, turned as its EXIF data says.

    Args:
        name: What messages call it.
        content: A PNG, JPEG or WebP file.
        max_pixels: Height times width.

    Returns:
        uint8 [height, width, 3].

    Raises:
        RequestError: If it is none, is damaged, animated, transparent or too large.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _check_header(name, picture, max_pixels)
            picture.load()
            return np.asarray(_opaque(name, ImageOps.exif_transpose(picture)))
    except RequestError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, for a server whose limit is higher
        raise RequestError(
            f"{name} has too many pixels, at most {max_pixels} are allowed; send a smaller one"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise RequestError(f"{name} is no {kinds} file, or a damaged one; send the file again") from error


def resized(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize an image with Lanczos' filter, uint8 [height, width, 3]."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _check_header(name: str, picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise RequestError(f"{name} has {width}x{height} pixels, at most {max_pixels} are allowed; send a smaller one")
    if getattr(picture, "n_frames", 1) != 1:
        raise RequestError(f"{name} is animated; send a single picture")


def _opaque(name: str, picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        raise RequestError(f"{name} has transparent pixels, which have no colour here; put it on a background before")
    return picture.convert("RGB")
