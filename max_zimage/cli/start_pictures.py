"""The pictures that image-to-image on the command line begins with, and those that a picture to be repeated needs."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from max_zimage.errors import Item, RequestError
from max_zimage.images.masks import alpha, decode_mask
from max_zimage.images.read import file_bytes, read_image
from max_zimage.request.mask_checks import mask_digest
from max_zimage.request.metadata import UNKNOWN_IMAGE, GenerationParameters
from max_zimage.request.start_image import digest

MAX_IMAGE_PIXELS = 2**28
"""Height times width of an image to begin with: one's own, so that only memory is a reason to stop."""

Pixels = npt.NDArray[np.uint8]


def start_image(arguments: argparse.Namespace, saved: GenerationParameters | None) -> Pixels | None:
    """The image to begin with: the one that the picture of --from began with, where it began with one.

    Raises:
        RequestError: If it cannot be read, is missing, or is another one.
    """
    wanted = None if saved is None or saved.image_digest == UNKNOWN_IMAGE else saved.image_digest
    of = saved and f"{saved.image_width}x{saved.image_height} pixels, {str(saved.image_digest)[:19]}..."
    if arguments.image is None:
        if wanted is not None:
            raise RequestError(
                f"{arguments.source} was drawn from an image ({of}), which is needed again; name its file with --image"
            )
        return None
    image = read_image("--image", Path(arguments.image), MAX_IMAGE_PIXELS)
    if wanted is not None and digest(image) != wanted:
        rows, columns, _ = image.shape
        raise RequestError(
            f"--image {arguments.image} is not the image that {arguments.source} was drawn from: it has "
            f"{columns}x{rows} pixels, {digest(image)[:19]}..., and that one {of}; name that one's file, or leave out "
            "--from and give the prompt and the seed yourself"
        )
    return image


def start_mask(arguments: argparse.Namespace, saved: GenerationParameters | None) -> Pixels | None:
    """The mask: the one that the picture of --from was drawn with, where it was drawn with one.

    That one may have come to a server as a mask in transparency; then its file is read so.

    Raises:
        RequestError: If it cannot be read, is missing, or is another one.
    """
    wanted = None if saved is None else saved.mask_digest
    if arguments.mask is None:
        if wanted is not None:
            raise RequestError(
                f"{arguments.source} was drawn with a mask ({wanted[:19]}...), which is needed again; name its file "
                "with --mask"
            )
        return None
    path = Path(arguments.mask)
    content = file_bytes("--mask", path)
    transparency = None if wanted is None else alpha(content, MAX_IMAGE_PIXELS)
    if transparency is not None and mask_digest(transparency) == wanted:
        return transparency
    mask = decode_mask(Item("--mask", f" {path}"), content, MAX_IMAGE_PIXELS)
    if wanted is not None and mask_digest(mask) != wanted:
        raise RequestError(
            f"--mask {path} is not the mask that {arguments.source} was drawn with: {mask_digest(mask)[:19]}..., and "
            f"that one {wanted[:19]}...; name that one's file, or leave out --from and give the prompt and the seed "
            "yourself"
        )
    return mask
