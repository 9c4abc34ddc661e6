"""The pictures of AUTOMATIC1111's `img2img`: as they come, as a request takes them, and as they go back.

Reference: stable-diffusion-webui modules/processing.py (StableDiffusionProcessingImg2Img).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from max_zimage.errors import RequestError
from max_zimage.images.a1111_masks import blurred, filled
from max_zimage.images.masked_part import MaskedPart
from max_zimage.images.masks import decode_mask
from max_zimage.images.read import data_url_bytes, decode_image
from max_zimage.images.save import encode_image
from max_zimage.images.xmp import Source
from max_zimage.request.limits import RequestDefaults
from max_zimage.serving.errors import bad_request
from max_zimage.serving.http.a1111_body import NAMES, Img2ImgRequest
from max_zimage.serving.http.api_names import refused
from max_zimage.serving.settings import ServerLimits

Pixels = npt.NDArray[np.uint8]

_BLUR = 4.0  # pixels, of a mask where a request says nothing


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a body brings.

    Attributes:
        image: The file to start from.
        mask: The mask's file, or None.
    """

    image: bytes
    mask: bytes | None


@dataclass(frozen=True, kw_only=True)
class Put:
    """A part that is drawn by itself, and what its picture says of that.

    Attributes:
        part: Of the image.
        said: Pairs of the text that other tools read.
    """

    part: MaskedPart
    said: Mapping[str, str]

    def back(self, file: bytes, text: str | None) -> bytes:
        """The image with what was drawn in it, as a PNG.

        It holds the text that other tools read and no JSON of this program's, from which a picture is drawn again: what
        that would draw is the part alone.

        Args:
            file: What was drawn.
            text: What it was drawn with; None for a file that says nothing.
        """
        whole = self.part.put_back(decode_image("picture", file))
        return encode_image(whole, "PNG", text=text or "", source=None if text is None else Source.COMPOSITE)


def file_of_text(name: str, text: str) -> bytes:
    """The file in base64, with or without what makes a data URL of it.

    Args:
        name: What messages call it.
        text: Its text.

    Raises:
        RequestError: If it is none.
    """
    return data_url_bytes(name, text if text.startswith("data:") else f"data:image/png;base64,{text}")


def pictures_of(
    body: Img2ImgRequest, files: Files, values: Mapping[str, Any], limits: ServerLimits, defaults: RequestDefaults
) -> tuple[dict[str, Any], Put | None]:
    """The image, and the mask as it is to be taken.

    Args:
        body: The request.
        files: Its files.
        values: What else it says, as arguments of `GenerationRequest.create`.
        limits: The server's.
        defaults: The checkpoint's.

    Returns:
        Arguments of `GenerationRequest.create` in place of `values`, and what is put back where a part alone is drawn.

    Raises:
        ApiError: 400 if a file does not do, or there is no part to draw.
    """
    try:
        image = decode_image("init_images", files.image, limits.input_pixels)
        if files.mask is None:
            return {**values, "image": image}, None
        mask = decode_mask("mask", files.mask, limits.input_pixels)
    except RequestError as error:
        raise refused(error, NAMES) from error
    if body.inpainting_mask_invert:
        mask = 255 - mask
    usual = _BLUR if body.mask_blur is None else body.mask_blur
    across, down = (usual if each is None else each for each in (body.mask_blur_x, body.mask_blur_y))
    sides = values.get("height", defaults.height), values.get("width", defaults.width)
    # A size that is not allowed is refused as that of any request is, and nothing is made of it before.
    if draws_part(body) and min(sides) > 0 and sides[0] * sides[1] <= limits.pixels:
        return _part(body, values, image, mask, (across, down), sides)
    begin = image if body.inpainting_fill == 1 else filled(image, mask)
    return {**values, "image": begin, "mask_image": blurred(mask, across, down), "composite": True}, None


def draws_part(body: Img2ImgRequest) -> bool:
    """Whether the masked part is drawn by itself, which is so where a body says nothing, as in the web UI."""
    return body.mask is not None and body.inpaint_full_res in (None, True, 1)


def _part(
    body: Img2ImgRequest,
    values: Mapping[str, Any],
    image: Pixels,
    mask: Pixels,
    blur: tuple[float, float],
    sides: tuple[int, int],
) -> tuple[dict[str, Any], Put]:
    rows, columns = image.shape[:2]
    if mask.shape != (rows, columns):
        mask = np.asarray(Image.fromarray(mask).resize((columns, rows), Image.Resampling.LANCZOS))
    soft = blurred(mask, *blur)
    height, width = sides
    padding = body.inpaint_full_res_padding or 0
    part = MaskedPart.around(image, soft, padding=padding, height=height, width=width)
    if part is None:
        colour = "white" if body.inpainting_mask_invert else "black"
        message = f"mask: is {colour} all over, and there is no part to draw; send inpaint_full_res as false, or a mask"
        raise bad_request(message, "mask")
    begin = part.cut(image)
    if body.inpainting_fill != 1:
        begin = filled(begin, part.cut(mask))
    said = {"Inpaint area": "Only masked", "Masked area padding": str(padding)}
    sized = {"height": height, "width": width, "image": begin, "mask_image": part.cut(soft)}
    return {**values, **sized}, Put(part=part, said=said)
