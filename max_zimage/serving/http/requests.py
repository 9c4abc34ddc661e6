"""From a parsed body to what the worker gets, with every check on the way; all of it before any work is queued."""

from __future__ import annotations

import base64
from dataclasses import dataclass
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
from max_zimage.serving.http.image_fields import compression_of, size_of, steps_of
from max_zimage.serving.http.schema import ImageRequest, given
from max_zimage.serving.settings import ServerLimits
from max_zimage.text.tokenizer import TokenizerError


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

    def context_fields(self, output_format: str) -> dict[str, Any]:
        """What contexts of all requests have in common; each has an id of its own, which nobody but the worker knows.

        The id by which a client knows a request does not go to the worker: a client may use it again at once when it
        has cancelled, while the worker still has the first one.
        """
        return {
            "request_id": RequestID(),
            "model_name": self.name,
            "output_format": output_format,
            "listens": True,
        }

    def encoding_fields(self) -> dict[str, Any]:
        """The same of requests whose texts are encoded and of which nothing is drawn."""
        return self.context_fields("png") | {"encodes": self.tokenizer.digests}


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
    steps = steps_of(body, served.tokenizer.defaults.num_inference_steps)
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
        compression=compression_of(body),
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

    Raises:
        ApiError: 400 if the prompt has too many tokens, or metadata is asked of a server that writes none.
    """
    check_loras(served, asked, names)
    carries = carries_metadata(served, metadata)
    parameters = written_parameters(asked, served.drawn_by) if carries else []
    try:
        return served.tokenizer.make_context(
            asked, **served.context_fields(output_format), parameters=parameters, metadata=carries, **more
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
