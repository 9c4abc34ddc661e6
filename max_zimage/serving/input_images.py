"""The images that a request of the OpenResponses API brings: one to begin with, and a mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from max.pipelines.request import OpenResponsesRequest
from max.pipelines.request.open_responses import InputImageContent

from max_zimage.errors import RequestError
from max_zimage.images.masks import decode_mask
from max_zimage.images.read import data_url_bytes, image_of_data_url


def image_urls(request: OpenResponsesRequest) -> list[str]:
    """The images of a request's messages, as data URLs: MAX's schema lets no others through."""
    if isinstance(request.body.input, str):
        return []
    contents = [message.content for message in request.body.input if isinstance(message.content, list)]
    return [part.image_url for content in contents for part in content if isinstance(part, InputImageContent)]


def start_image(request: OpenResponsesRequest, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """The image to begin with, uint8 [height, width, 3] or with alpha; None for none.

    Raises:
        RequestError: If there are several, or it cannot be read.
    """
    urls = image_urls(request)
    if len(urls) > 1:
        message = "{field}: one image may be given, got {given}; leave the others out"
        raise RequestError.of("input_image", message, given=len(urls))
    return image_of_data_url("input_image", urls[0], max_pixels) if urls else None


def mask(request: OpenResponsesRequest, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """The mask, uint8 [height, width]; None for none.

    Raises:
        RequestError: If it cannot be read.
    """
    url = (request.body.metadata or {}).get("mask_image")
    return None if url is None else decode_mask("mask_image", data_url_bytes("mask_image", url), max_pixels)
