"""The picture that image-to-image begins with: the size it is drawn in, and the digest by which it is known again.

The digest is of what the image shows, its decoded pixels with orientation and colours applied, and of its size. So the
same picture in another file has the same one, and it does not depend on a resizing that came afterwards.
"""

from __future__ import annotations

import hashlib
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from max_zimage.errors import RequestError
from max_zimage.images.read import starting_image
from max_zimage.request import checks
from max_zimage.request.checks import Problems
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.mask_checks import framed_size
from max_zimage.sampling.positions import PIXELS_PER_TOKEN

Pixels = npt.NDArray[np.uint8]


class Start(TypedDict):
    """An image to begin with, uint8 [rows, columns, 3] or None, and the picture's height and width."""

    image: Pixels | None
    height: int
    width: int


def digest(image: Pixels) -> str:
    """What tells an image from others.

    Args:
        image: uint8 [height, width, 3], before any resizing.

    Returns:
        "sha256:" and the hexadecimal SHA-256 of height and width as in "80x112:" and the pixels in C order.
    """
    height, width, _ = image.shape
    found = hashlib.sha256(f"{height}x{width}:".encode())
    found.update(np.ascontiguousarray(image).data)
    return f"sha256:{found.hexdigest()}"


def picture(
    problems: Problems,
    image: object,
    height: object,
    width: object,
    resize: object,
    margins: tuple[int, ...] | None,
    limits: Limits,
    defaults: RequestDefaults,
) -> Start:
    """Check the image of a request, and the size it is drawn in.

    Args:
        problems: Collects what is wrong.
        image: What was given, or None.
        height: Of the picture; that of the image, or else the checkpoint's, if None.
        width: Of the picture, likewise.
        resize: Whether the image may be resized; None where the caller does not offer it.
        margins: Pixels around the image.
        limits: What the checkpoint can do at most.
        defaults: What it does where nothing is asked for.

    Returns:
        Three arguments of `max_zimage.request.request.GenerationRequest`.
    """
    found = problems.optional(starting_image, "image", image, (limits.max_height, limits.max_width))
    allowed = problems.check(False, checks.resize, resize, image)
    usual = (defaults.height, defaults.width)
    if found is not None:
        asked = height is not None and width is not None
        # Where it fails, its message is enough: the fallbacks are sides that add none.
        usual = problems.check((16, 16), _usual_size, found, margins, allowed, asked=asked)
    return {
        "image": found,
        "height": problems.check(16, checks.side, "height", usual[0] if height is None else height, limits.max_height),
        "width": problems.check(16, checks.side, "width", usual[1] if width is None else width, limits.max_width),
    }


def _usual_size(image: Pixels, margins: tuple[int, ...] | None, resize: bool | None, *, asked: bool) -> tuple[int, int]:
    """Height and width where the request names none: the image's own, or the nearest that can be drawn."""
    height, width = framed_size(image, margins)
    nearest = (_nearest(height), _nearest(width))
    if resize or asked or nearest == (height, width):
        return nearest
    raise RequestError.of(
        "image",
        "{field}: its sides must be multiples of {step}, it has {width}x{height} pixels"
        + _with(margins)
        + "; the nearest size that fits is {near_width}x{near_height}; "
        + ("resize it" if margins is None else "take other margins, or resize it")
        + _or_say_so(resize),
        step=PIXELS_PER_TOKEN,
        width=width,
        height=height,
        near_width=nearest[1],
        near_height=nearest[0],
    )


def check_size(image: Pixels, margins: tuple[int, ...] | None, height: int, width: int, resize: bool | None) -> None:
    """Refuse an image of another size than the picture's, unless it may be resized.

    Args:
        image: uint8 [height, width, 3].
        margins: Pixels around it.
        height: Of the picture.
        width: Of the picture.
        resize: Whether the image may be resized; None where the caller cannot say so.

    Raises:
        RequestError: If the sizes differ.
    """
    rows, columns = framed_size(image, margins)
    if (rows, columns) == (height, width) or resize:
        return
    nearest = f"{_nearest(columns)}x{_nearest(rows)}"
    is_own = nearest == f"{columns}x{rows}"
    remedy = "{say[own size]}" if is_own else "ask for {nearest}, the nearest to the image's size"
    raise RequestError.of(
        "image",
        "{field}: it has {columns}x{rows} pixels" + _with(margins) + " and {say[asks]} for {width}x{height}; "
        f"{remedy}, resize it{_or_say_so(resize)}",
        columns=columns,
        rows=rows,
        width=width,
        height=height,
        nearest=nearest,
    )


def _with(margins: tuple[int, ...] | None) -> str:
    return "" if margins is None else " with those of {name[outpaint]}"


def _or_say_so(resize: bool | None) -> str:
    return " before" if resize is None else ", or {say[resize]}"


def _nearest(pixels: int) -> int:
    return max(PIXELS_PER_TOKEN, round(pixels / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN)
