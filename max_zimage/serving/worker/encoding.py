"""Pixels to the answer that carries them."""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt
from max.pipelines.context import GenerationStatus
from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.request.open_responses import ImageGenerationDetails, OutputImageContent, Usage

from max_zimage.images.save import encode_image
from max_zimage.images.xmp import source_of
from max_zimage.pipeline.context import ZImageContext
from max_zimage.pipeline.not_finite import Flags
from max_zimage.serving.worker.messages import text_content

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
"""Output formats of a request and what Pillow calls them."""


def final_output(
    context: ZImageContext, pixels: npt.NDArray[np.uint8], finite: Flags, problem: str
) -> GenerationOutput:
    """Encode a request's pictures, each with its parameters inside where the request brought them.

    Args:
        context: The request.
        pixels: uint8 [pictures, height, width, 3].
        finite: bool [pictures].
        problem: What the answer says in place of a picture that is not finite.
    """
    kind = FORMATS[context.output_format]
    parameters = context.parameters or [""] * len(pixels)
    source = source_of(context.input_image) if context.metadata else None
    files = [
        encode_image(picture, kind, text, context.compression, source) if good else None
        for picture, text, good in zip(pixels, parameters, finite, strict=True)
    ]
    return GenerationOutput(
        request_id=context.request_id,
        final_status=GenerationStatus.END_OF_SEQUENCE,
        output=[text_content(problem) if file is None else _content(file, context) for file in files],
        usage=Usage(
            input_tokens=0,
            output_tokens=0,
            total_tokens=0,
            input_tokens_details=None,
            output_tokens_details=None,
            audio_generation_details=None,
            image_generation_details=ImageGenerationDetails.from_images(pixels, steps=context.steps_in_all),
        ),
    )


def _content(file: bytes, context: ZImageContext) -> OutputImageContent:
    return OutputImageContent(
        type="output_image",
        image_data=base64.b64encode(file).decode(),
        image_url=None,
        format=context.output_format,
        detail=None,
    )
