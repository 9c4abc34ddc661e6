"""Images that requests bring: one way to pixels, whatever they come in.

The header is judged before a pixel is decoded: a small file may claim gigabytes. What comes as bytes opens no path and
no address. Orientation and colour profiles are applied, which diffusers leaves to its caller.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from max_zimage.errors import Item, RequestError
from max_zimage.images.colours import layout, to_srgb
from max_zimage.images.files import check_size, damaged, open_image

MAX_PIXELS = 4096 * 4096
"""Height times width of an image, where nothing else is said."""
MAX_FILE_BYTES = 512 * 2**20

_DATA_URL = re.compile(r"data:(image/[a-z0-9+.-]+|application/octet-stream)?(;[^;,]*)*?;base64,", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")
# Formats whose further pictures belong to the first: a phone's second JPEG, the layers below.
_ANIMATED = ("PNG", "GIF", "WEBP", "AVIF")
_OF_ONE_PICTURE = ("MPO", "PSD")


def image_of_data_url(name: str, url: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read an image from a data URL; see `data_url_bytes` and `decode_image`."""
    return decode_image(name, data_url_bytes(name, url), max_pixels)


def data_url_bytes(name: str, url: str) -> bytes:
    """The file in a data URL.

    Args:
        name: What messages call it.
        url: "data:image/png;base64,…". The file's bytes say what it is, whatever stands there.

    Raises:
        RequestError: If it is no such URL.
    """
    match = _DATA_URL.match(url[:200])
    if match is None:
        raise RequestError.of(
            name, '{field} must be a data URL, "data:image/png;base64,...", got {url!r}', url=url[:40]
        )
    text = "".join(url[match.end() :].split()).translate(_URL_SAFE)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError.of(
            name, "{field} is no valid base64 ({error}); encode the file's bytes again", error=error
        ) from error


def read_image(name: str, path: Path, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read an image from a file; see `decode_image`.

    Args:
        name: What messages call it.
        path: Of a PNG, JPEG or WebP file, whatever its name ends in.
        max_pixels: Height times width.

    Raises:
        RequestError: If it cannot be read, or the image does not do.
    """
    return decode_image(Item(name, f" {path}"), file_bytes(name, path), max_pixels)


def file_bytes(name: str, path: Path) -> bytes:
    """What stands in an image's file.

    Args:
        name: What messages call it.
        path: Its.

    Raises:
        RequestError: If it cannot be read, or has too many bytes.
    """
    file_name = Item(name, f" {path}")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError.of(
            file_name, "{field} cannot be read: {reason}; name a PNG, JPEG or WebP file", reason=reason
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise RequestError.of(file_name, "{field} has more than {most} bytes; send a smaller file", most=MAX_FILE_BYTES)
    return content


def decode_image(name: str | Item, content: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read an image from a file's bytes: opaque, upright, in sRGB.

    Args:
        name: What messages call it.
        content: A PNG, JPEG or WebP file.
        max_pixels: Height times width.

    Returns:
        uint8 [height, width, 3].

    Raises:
        RequestError: If it is none, is damaged, animated, transparent or too large.
    """
    picture, kind = open_image(name, content, max_pixels)
    with picture:
        return _pixels(name, picture, max_pixels, kind)


def picture_pixels(name: str, picture: Image.Image, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Turn one of Pillow's pictures into pixels as `decode_image` does with a file's, of any mode and format.

    Args:
        name: What messages call it.
        picture: Decoded or not; it is left open and as it is.
        max_pixels: Height times width.

    Returns:
        uint8 [height, width, 3].

    Raises:
        RequestError: If it is damaged, animated, transparent or too large, or has values whose meaning cannot be told.
    """
    return _pixels(name, picture, max_pixels, None)


def starting_image(name: str, value: object, largest: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return a picture to begin with as uint8 [height, width, 3], from one of Pillow's or an array.

    Args:
        name: What messages call it.
        value: What was given.
        largest: Height and width whose product it may have in pixels; which sides can be drawn is not judged here.
    """
    if isinstance(value, Image.Image):
        value = picture_pixels(name, value, largest[0] * largest[1])
    wanted = "{field} must be a PIL image or a uint8 array [height, width, 3], got {given}; {remedy}"
    if not isinstance(value, np.ndarray):
        remedy = "open it with PIL.Image.open" if isinstance(value, (str, bytes, Path)) else "convert it before"
        raise RequestError.of(name, wanted, given=type(value).__name__, remedy=remedy)
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or 0 in value.shape:
        remedy = _array_remedy(value)
        raise RequestError.of(name, wanted, given=f"{value.dtype} {list(value.shape)}", remedy=remedy)
    return value


def _array_remedy(value: npt.NDArray[np.generic]) -> str:
    if value.dtype != np.uint8:
        return "scale it to 0 to 255 and convert it with .astype(numpy.uint8)"
    if value.ndim == 2:
        return "PIL.Image.fromarray makes a picture of greys"
    if value.shape[2:] == (4,):
        return "leave the alpha channel out"
    return "a single picture with its colours last is taken"


def resized(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize an image with Lanczos' filter, uint8 [height, width, 3]."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _pixels(name: str | Item, picture: Image.Image, max_pixels: int, kind: str | None) -> npt.NDArray[np.uint8]:
    width, height = picture.size
    check_size(name, width, height, max_pixels)
    if width * height == 0:
        raise RequestError.of(
            name, "{field} has {width}x{height} pixels; send one that has some", width=width, height=height
        )
    try:
        if getattr(picture, "is_animated", False) and picture.format not in _OF_ONE_PICTURE:
            several = "is animated" if picture.format in _ANIMATED else "has several pages"
            raise RequestError.of(name, "{field} {several}; send a single picture", several=several)
        described = layout(picture)
        picture.load()
    except RequestError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise damaged(name, kind, error) from error
    return to_srgb(name, picture, described)
