"""MAX's own route of pictures, `POST /v1/responses`, with this server's queue, limits and errors.

Reference: MAX serve/router/openresponses_routes.py, which answers in the same shape.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from fastapi import APIRouter, Request
from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.modeling.types import RequestID
from max.pipelines.request import OpenResponsesRequest
from max.pipelines.request.open_responses import OpenResponsesRequestBody, OutputContent, ResponseResource
from starlette.responses import JSONResponse, Response

from max_zimage.errors import RequestError
from max_zimage.pipeline.context import ZImageContext
from max_zimage.request.request import GenerationRequest
from max_zimage.serving.context_tokenizer import image_options
from max_zimage.serving.drawn_by import asked_metadata
from max_zimage.serving.errors import bad_request
from max_zimage.serving.http.answers import file_of, finished
from max_zimage.serving.http.api_names import RESPONSES, refused
from max_zimage.serving.http.remote_images import fetched, is_remote
from max_zimage.serving.http.requests import ServedModel, check_model, check_request, make_context
from max_zimage.serving.http.routes_images import json_body, parsed
from max_zimage.serving.http.state import ServerState, state_of

router = APIRouter(prefix="/v1")

_FIELDS = ("model", "input", "provider_options", "seed", "n", "stream", "metadata", "user")
"""Fields of the body that mean something here. The rest of MAX's schema is for text."""


@router.post("/responses")
async def create_response(request: Request) -> Response:
    """Draw pictures, asked for as MAX's OpenResponses API does."""
    state = state_of(request)
    state.check_room()
    content = await _inlined(state, await json_body(request))
    body = parsed(OpenResponsesRequestBody, content)
    asked, make = await asyncio.to_thread(_asked, state.served, body, content)
    revision = await state.revised(asked, RESPONSES, request)
    context = await asyncio.to_thread(make, revision.request)
    job = await state.submit(context, request)
    state.note(job, body.user)
    output = await finished(state.dispatcher, job, request)
    options = body.provider_options.image
    if options is not None and options.response_format == "url":
        output = await _by_url(state, output, request)
    answer = ResponseResource.from_generation_output(output, model=body.model)
    told = {**revision.of_picture, **({"warnings": " ".join(revision.notes)} if revision.notes else {})}
    answer = answer.model_copy(update={"metadata": {**(body.metadata or {}), **told} if told else body.metadata})
    return JSONResponse(answer.model_dump(mode="json", exclude_none=True))


def _asked(
    served: ServedModel, body: OpenResponsesRequestBody, content: bytes
) -> tuple[GenerationRequest, Callable[[GenerationRequest], ZImageContext]]:
    """Check a request; what it asks for, and what prepares that or the same with another prompt."""
    given = {name for name, value in json.loads(content).items() if value is not None}
    unknown = sorted(given - set(_FIELDS))
    if unknown:
        raise bad_request(
            f"{', '.join(unknown)}: no use for this with a model of pictures; the fields are {', '.join(_FIELDS)}",
            unknown[0],
        )
    if body.stream:
        raise bad_request("stream: this route does not stream, /v1/images/generations does", "stream")
    check_model(served, body.model)
    asked_for = OpenResponsesRequest(request_id=RequestID(), body=body)
    try:
        asked = served.tokenizer.parse(asked_for)
        options = image_options(asked_for)
        metadata = asked_metadata(body.metadata)
    except RequestError as error:
        raise refused(error, RESPONSES) from error
    check_request(served.limits, asked, RESPONSES, bool(options.negative_prompt))
    return asked, lambda drawn: make_context(served, drawn, options.output_format, RESPONSES, metadata)


async def _inlined(state: ServerState, content: bytes) -> bytes:
    """The body with images in place of their addresses, which MAX's schema does not take.

    Raises:
        ApiError: 400 where the server fetches none, or cannot.
    """
    try:
        body = json.loads(content)
        parts = [part for message in body["input"] for part in message["content"] if "image_url" in part]
    except (ValueError, TypeError, KeyError, RecursionError):
        return content  # not for us to judge: the schema will
    remote = [part for part in parts if isinstance(part, dict) and is_remote(part["image_url"])]
    if len(remote) > 1:
        raise bad_request(
            f"input_image: one image may be given, got {len(remote)}; leave the others out", "input_image"
        )
    for part in remote:
        part["image_url"] = await fetched(state, "input_image", part["image_url"])
    return json.dumps(body).encode() if remote else content


async def _by_url(state: ServerState, output: GenerationOutput, request: Request) -> GenerationOutput:
    contents: list[OutputContent] = []
    for item in output.output:
        file = file_of(item)
        if file is None:
            contents.append(item)
            continue
        name = await state.media.put(file, f"image/{getattr(item, 'format', '')}")
        url = str(request.url_for("image_content", name=name))
        contents.append(item.model_copy(update={"image_url": url, "image_data": None}))
    return output.model_copy(update={"output": contents})
