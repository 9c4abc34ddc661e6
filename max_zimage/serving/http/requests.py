"""From a parsed body to what the worker gets, with every check on the way; all of it before any work is queued."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from max.pipelines.context.exceptions import InputError
from max.pipelines.modeling.types import RequestID

from max_zimage.errors import CheckpointError, RequestError
from max_zimage.images.save import ImageFileError
from max_zimage.pipeline.bound_adapters import opened
from max_zimage.pipeline.context import ZImageContext
from max_zimage.request.loras import without_folders
from max_zimage.request.prompt_features import PromptFeatures
from max_zimage.request.request import GenerationRequest
from max_zimage.serving.context_tokenizer import ZImageTokenizer
from max_zimage.serving.drawn_by import DrawnBy, written_parameters
from max_zimage.serving.errors import ApiError, bad_request, over_limit
from max_zimage.serving.http.api_names import IMAGES, ApiNames, refused
from max_zimage.serving.http.schema import ImageRequest, given
from max_zimage.serving.settings import ServerLimits
from max_zimage.text.tokenizer import TokenizerError

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The model behind the routes.

    Attributes:
        name: What requests call it.
        drawn_by: What pictures say of it.
        tokenizer: Makes contexts, and knows the checkpoint's limits and defaults.
        limits: The server's.
        metadata: Whether its pictures carry what they were drawn with.
    """

    name: str
    drawn_by: DrawnBy
    tokenizer: ZImageTokenizer
    limits: ServerLimits
    metadata: bool = True


def asked_of_image_request(served: ServedModel, body: ImageRequest, **more: Any) -> GenerationRequest:
    """Check a request of the OpenAI image routes.

    Args:
        served: The model.
        body: The request.
        **more: Other arguments of `GenerationRequest.create`.

    Raises:
        ApiError: 400 or 404, with the field that is to blame.
    """
    check_model(served, body.model)
    if body.partial_images and not body.stream:
        raise bad_request(
            "partial_images: previews come with stream; set stream to true, or leave it out", "partial_images"
        )
    if body.progress and not body.stream:
        raise bad_request("progress: steps are told with stream; set stream to true, or leave it out", "progress")
    values = given(body)
    if "features" in values:
        values["features"] = features_of_text(values["features"])
    elif body.prompt is None:
        raise bad_request("prompt: field required, a string, or features in its place", "prompt")
    height, width = size_of(body.size)
    steps = _steps(served, body)
    return request_of(
        served,
        **values | {"prompt": body.prompt, "height": height, "width": width, "num_inference_steps": steps} | more,
        num_images_per_prompt=body.n or 1,
    )


def context_of_image_request(served: ServedModel, body: ImageRequest, asked: GenerationRequest) -> ZImageContext:
    """Prepare a request of those routes; errors are those of `make_context`.

    Args:
        served: The model.
        body: The request as it came.
        asked: The same, checked, or with another prompt.
    """
    return make_context(
        served,
        asked,
        body.output_format or "png",
        metadata=body.metadata,
        compression=_compression(body),
        reports=bool(body.stream),
        previews=(body.partial_images or 0) if body.stream else 0,
    )


def check_model(served: ServedModel, name: str | None) -> None:
    """Refuse a request for another model."""
    if name is not None and name != served.name:
        raise ApiError(
            404, "model_not_found", f"model: this server has {served.name!r}, not {name!r}; leave it out", param="model"
        )


def request_of(served: ServedModel, names: ApiNames = IMAGES, **arguments: Any) -> GenerationRequest:
    """Check a request against the checkpoint, then against the server's limits.

    Args:
        served: The model.
        names: Of the API it came by.
        **arguments: Of `GenerationRequest.create`.

    Raises:
        ApiError: 400, with the field that is to blame, the first one of several.
    """
    try:
        asked = GenerationRequest.create(
            limits=served.tokenizer.limits, defaults=served.tokenizer.defaults, **arguments
        )
    except RequestError as error:
        raise refused(error, names) from error
    check_request(served.limits, asked, names, bool(arguments.get("negative_prompt")))
    return asked


def check_request(limits: ServerLimits, asked: GenerationRequest, names: ApiNames, negative: bool) -> None:
    """Refuse what this server does not allow, and a negative prompt that would do nothing.

    Args:
        limits: The server's.
        asked: The request.
        names: Of the API it came by.
        negative: Whether it names a negative prompt.

    Raises:
        ApiError: 400, with what was asked for and what is allowed.
    """
    check_pixels(limits, asked.height, asked.width, names)
    if (steps := max(asked.num_inference_steps, asked.num_steps)) > limits.steps:
        raise over_limit("steps", steps, limits.steps, "steps")
    if asked.num_evaluations > limits.steps:
        raise over_limit("steps", asked.num_evaluations, limits.steps, "evaluations of the model")
    if asked.num_images > limits.images:
        raise over_limit(names.of("num_images_per_prompt"), asked.num_images, limits.images, "pictures a request")
    check_texts(limits, asked, names)
    if negative and not asked.uses_negative:
        raise bad_request(
            f"negative_prompt: guidance is off, and it would do nothing; {names.guides}, or leave it out",
            "negative_prompt",
        )


def features_of_text(text: str) -> PromptFeatures:
    """Features as JSON has them: base64 of a file.

    Raises:
        ApiError: 400 if they are none.
    """
    try:
        return PromptFeatures.from_bytes(base64.b64decode(text, validate=True))
    except ImageFileError as error:
        raise bad_request(str(error), "features") from error
    except ValueError as error:
        message = "features: must be base64 of a file of features, which /v1/prompt-features answers"
        raise bad_request(message, "features") from error


def check_texts(limits: ServerLimits, asked: GenerationRequest, names: ApiNames) -> None:
    """Refuse texts that are longer than this server allows.

    Raises:
        ApiError: 400.
    """
    texts = {"prompt": asked.prompts, "negative_prompt": asked.negative_prompts}
    # Together, for a picture's file holds them together.
    texts["system_prompt"] = (asked.system_prompt + asked.thinking_content + asked.assistant_content,)
    for name, each in texts.items():
        longest = max(map(len, each), default=0)
        if longest > limits.prompt_characters:
            raise over_limit(names.param(name) or name, longest, limits.prompt_characters, "characters")


def check_pixels(limits: ServerLimits, height: int, width: int, names: ApiNames = IMAGES) -> None:
    """Refuse a picture that is larger than this server allows.

    Raises:
        ApiError: 400.
    """
    if height * width > limits.pixels:
        raise over_limit(
            names.param("width") or "width", f"{width}x{height} = {height * width}", limits.pixels, "pixels"
        )


def make_context(
    served: ServedModel,
    asked: GenerationRequest,
    output_format: str,
    names: ApiNames = IMAGES,
    metadata: bool | None = None,
    **more: Any,
) -> ZImageContext:
    """Tokenize and lay out a checked request, under an id of its own.

    The id by which a client knows a request does not go to the worker: a client may use it again at once when it has
    cancelled, while the worker still has the first one.

    Raises:
        ApiError: 400 if the prompt has too many tokens, or metadata is asked of a server that writes none.
    """
    check_loras(served, asked, names)
    carries = carries_metadata(served, metadata)
    parameters = written_parameters(asked, served.drawn_by) if carries else []
    try:
        return served.tokenizer.make_context(
            asked,
            request_id=RequestID(),
            model_name=served.name,
            output_format=output_format,
            listens=True,
            parameters=parameters,
            metadata=carries,
            **more,
        )
    except (RequestError, TokenizerError, InputError) as error:
        raise refused(error, names) from error


def carries_metadata(served: ServedModel, wish: bool | None) -> bool:
    """Whether pictures carry what they were drawn with.

    Raises:
        ApiError: 400 if that is asked of a server that writes none.
    """
    if wish and not served.metadata:
        raise bad_request("metadata: this server's pictures carry none; leave it out", "metadata")
    return served.metadata if wish is None else wish


def check_loras(served: ServedModel, asked: GenerationRequest, names: ApiNames) -> None:
    """Refuse adapters that do not fit the checkpoint, before the request waits for its turn.

    Raises:
        ApiError: 400, with what does not fit.
    """
    for lora in asked.loras:
        try:
            opened(lora, served.tokenizer.specs)
        except CheckpointError as error:
            said = f"{names.of('loras')}: {without_folders(str(error), [lora])}"
            raise bad_request(said, names.param("loras")) from error


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


def _compression(body: ImageRequest) -> int | None:
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


def _steps(served: ServedModel, body: ImageRequest) -> int | None:
    """Steps, where the request or its quality names them."""
    fields = given(body)
    asked: int | None = fields.get("num_inference_steps")
    if body.quality not in _QUALITIES:
        return asked
    for name, called in (("num_inference_steps", "steps"), ("sigmas", "sigmas")):
        if fields.get(name) is not None:
            message = f"quality: stands for a number of steps, and {called} is given too; leave one out"
            raise bad_request(message, "quality")
    return math.ceil(_QUALITIES[body.quality] * served.tokenizer.defaults.num_inference_steps)
