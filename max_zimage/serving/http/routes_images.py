"""OpenAI's image routes, and what goes with them: pictures by URL, requests by id."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from max_zimage.request.request import GenerationRequest
from max_zimage.serving.errors import MOST_SAID, ApiError, bad_request, together
from max_zimage.serving.http.answers import EventResponse, ResponseFormat, events, finished, images_answer
from max_zimage.serving.http.api_names import IMAGES
from max_zimage.serving.http.media import reached
from max_zimage.serving.http.requests import asked_of_image_request, context_of_image_request
from max_zimage.serving.http.schema import GENERATION, ImageRequest
from max_zimage.serving.http.state import ServerState, state_of

router = APIRouter(prefix="/v1")
_JSON = re.compile(r"application/([a-z0-9.!#$&^_-]+\+)?json")
_TYPE = re.compile(r"(str|int|float|bool|none|list|dict|tuple|union|literal|constrained-\w+)(\[.*\])?")
_LONGEST_NAME = 64
"""Characters of a field's name that are shown, and up to which the nearest one is looked for: each costs time."""
_NOWHERE: Mapping[str, str] = MappingProxyType({})
Body = TypeVar("Body", bound=BaseModel)


def described(model: type[BaseModel]) -> dict[str, Any]:
    """What the API's description says of a body that the route reads by itself."""
    schema = model.model_json_schema()
    whole = _resolved(schema, schema.pop("$defs", {}))
    return {"requestBody": {"content": {"application/json": {"schema": whole}}, "required": True}}


def _resolved(part: Any, named: Mapping[str, Any]) -> Any:
    """A part of a schema with what it refers to in its place: as a part of a description it has no names of its own."""
    if isinstance(part, list):
        return [_resolved(each, named) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        part = named[part["$ref"].removeprefix("#/$defs/")] | {key: each for key, each in part.items() if key != "$ref"}
    return {key: _resolved(each, named) for key, each in part.items()}


@router.post("/images/generations", openapi_extra=described(GENERATION))
async def generate(request: Request) -> Response:
    """Draw pictures from a prompt."""
    state = state_of(request)
    state.check_room()
    body = parsed(GENERATION, await json_body(request))
    asked = await asyncio.to_thread(asked_of_image_request, state.served, body)
    return await answered(state, asked, body, "image_generation", request)


async def answered(
    state: ServerState, asked: GenerationRequest, body: ImageRequest, event: str, request: Request
) -> Response:
    """Have a request's prompt written out if it asks for that, queue it and answer it, at once or as events."""
    make = partial(context_of_image_request, state.served, body)
    revision, job = await state.submit_enhanced(asked, IMAGES, make, request)
    state.note(job, body.caller)
    form = ResponseFormat(
        event=event,
        by_url=body.response_format == "url",
        output_format=job.context.output_format,
        quality=body.quality or "auto",
        progress=bool(body.progress),
        of_picture=revision.of_picture,
        facts=revision.facts,
    )
    if body.stream:
        stream = events(state.dispatcher, job, form, state.media, request)
        return EventResponse(stream, lambda: state.dispatcher.cancel(job, "client"))
    output = await finished(state.dispatcher, job, request)
    return JSONResponse(await images_answer(output, job, form, state.media, request))


@router.get("/images/{name}/content", name="image_content")
async def image_content(name: str, request: Request) -> Response:
    """A picture of an answer by URL."""
    picture = await state_of(request).media.get(name)
    return Response(picture.content, media_type=picture.kind, headers={"X-Content-Type-Options": "nosniff"})


@router.get("/requests/{request_id}")
async def request_status(request_id: str, request: Request) -> dict[str, Any]:
    """How a request stands, by the X-Request-ID that it was sent or answered with; what became of it, for a while."""
    state = state_of(request)
    with reached(state.metrics):
        found = await state.records.find(request_id)
    if found is None:
        raise ApiError(404, "not_found", f"nothing is known of a request {request_id}", param="request_id")
    return found


@router.delete("/requests/{request_id}")
async def cancel_request(request_id: str, request: Request) -> JSONResponse:
    """Cancel a request, queued or running; its own answer becomes an error. 202 where its replica has yet to obey."""
    state = state_of(request)
    with reached(state.metrics):
        status = await state.records.cancel(request_id)
    if status is None:
        message = f"there is no request {request_id} that is not done"
        raise ApiError(404, "not_found", message, param="request_id")
    return JSONResponse({"id": request_id, "status": status}, 200 if status == "cancelled" else 202)


async def json_body(request: Request) -> bytes:
    """Read a body that says it is JSON; a page may send any other without asking its user's browser first.

    Raises:
        ApiError: 415 if it says something else, or nothing.
    """
    given = request.headers.getlist("content-type")
    kind, *options = [part.strip().lower() for part in ", ".join(given).split(";")]
    charsets = {option[8:].strip('"') for option in options if option.startswith("charset=")}
    if not _JSON.fullmatch(kind) or charsets - {"utf-8", "utf8", "us-ascii"}:
        raise ApiError(
            415,
            "unsupported_media_type",
            f"Content-Type: must be application/json in UTF-8, got {', '.join(given)[:80] or 'none'}; "
            'send the header "Content-Type: application/json"',
            param="Content-Type",
        )
    return await request.body()


def parsed(model: type[Body], content: bytes, elsewhere: Mapping[str, str] = _NOWHERE) -> Body:
    """Read a JSON body.

    Args:
        model: Its schema.
        content: The body.
        elsewhere: Fields that an API has and this server has not -> what to do instead.

    Raises:
        ApiError: 400, with all fields that do not fit, and the first one as the one to blame.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise invalid(error, model.model_fields, elsewhere) from error


def invalid(error: ValidationError, known: Iterable[str] = (), elsewhere: Mapping[str, str] = _NOWHERE) -> ApiError:
    """The schema's complaints, one line a field.

    Args:
        error: What pydantic found.
        known: The body's fields, the nearest of which is named for one that is none.
        elsewhere: See `parsed`.
    """
    problems: dict[str, Any] = {}
    for item in error.errors(include_url=False, include_context=False):
        # A field of several types is complained of once for each, and the type stands in the place's name.
        place = [part for part in item["loc"] if not _TYPE.fullmatch(str(part))]
        problems.setdefault(".".join(map(str, place)), []).append(item)
    lines = [
        f"{name[:_LONGEST_NAME] or 'the body'}: {' or '.join(map(_wanted, items[:-1]))}{' or ' if items[1:] else ''}"
        f"{elsewhere.get(name) or _said(items[-1], name, known)}"
        for name, items in islice(problems.items(), MOST_SAID)
    ]
    return bad_request(together(lines, len(problems)), next(iter(problems)) or None)


def _wanted(item: Any) -> str:
    message: str = item["msg"]
    return message[0].lower() + message[1:]


def _said(item: Any, name: str, known: Iterable[str]) -> str:
    if item["type"] == "extra_forbidden":
        near = get_close_matches(name, list(known), 1) if len(name) <= _LONGEST_NAME else []
        return f"is no field of this route{f', the nearest is {near[0]}' if near else ''}; leave it out"
    if item["type"] == "none_required":
        return "is not supported; leave it out"
    shown = repr(item["input"])
    given = f", got {shown if len(shown) <= 60 else shown[:57] + '...'}" if item["type"] != "missing" else ""
    message: str = item["msg"]
    return message[0].lower() + message[1:] + given
