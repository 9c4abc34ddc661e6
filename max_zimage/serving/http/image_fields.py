"""Fields of the OpenAI image routes that are written in another way than those of a request."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from max_zimage.serving.errors import bad_request
from max_zimage.serving.http.schema import ImageRequest, given

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


def size_of(text: str | None) -> tuple[int | None, int | None]:
    """Height and width, or None for those of the checkpoint or of the image.

    Raises:
        ApiError: 400 if it is no size.
    """
    if text is None or text == "auto":
        return None, None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise bad_request(
            f'size: must be "auto" or "WIDTHxHEIGHT" in pixels, e.g. "1024x768", got {text[:40]!r}', "size"
        )
    return int(match[2]), int(match[1])


def compression_of(body: ImageRequest) -> int | None:
    """Quality of the file, 100 if none is named, as OpenAI has it; None for one without loss.

    Raises:
        ApiError: 400 if a PNG is to have another.
    """
    kind, quality = body.output_format or "png", 100 if body.output_compression is None else body.output_compression
    if kind == "png" and quality != 100:
        raise bad_request(
            "output_compression: png has no quality but 100; set output_format to jpeg or webp, or leave it out",
            "output_compression",
        )
    return quality if kind == "jpeg" or quality < 100 else None


_QUALITIES = {"low": Fraction(1, 2), "high": Fraction(2), "hd": Fraction(2), "xhigh": Fraction(3), "max": Fraction(4)}
"""Words for more or fewer steps than a checkpoint's own, and how many times as many."""


def steps_of(body: ImageRequest, usual: int) -> int | None:
    """Steps, where the request or its quality names them; `usual` are the checkpoint's own."""
    fields = given(body)
    asked: int | None = fields.get("num_inference_steps")
    if body.quality not in _QUALITIES:
        return asked
    for name, called in (("num_inference_steps", "steps"), ("sigmas", "sigmas")):
        if fields.get(name) is not None:
            message = f"quality: stands for a number of steps, and {called} is given too; leave one out"
            raise bad_request(message, "quality")
    return math.ceil(_QUALITIES[body.quality] * usual)
