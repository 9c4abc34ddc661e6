"""OpenAI's image edits as image-to-image: an image and a prompt, as a form with a file or as JSON with a data URL."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response

from max_zimage.errors import RequestError
from max_zimage.images.read import decode_image, image_of_data_url
from max_zimage.pipeline.context import ZImageContext
from max_zimage.serving.errors import bad_request
from max_zimage.serving.http.api_names import IMAGES, refused
from max_zimage.serving.http.remote_images import fetched, is_remote
from max_zimage.serving.http.requests import context_of_image_request
from max_zimage.serving.http.routes_images import answered, described, invalid, json_body, parsed
from max_zimage.serving.http.schema import EDIT, LISTS, TEXTS, EditRequest, given
from max_zimage.serving.http.state import ServerState, state_of

router = APIRouter(prefix="/v1")

Pixels = npt.NDArray[np.uint8]
_MAX_FIELDS = 100
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@router.post("/images/edits", openapi_extra=described(EDIT))
async def edit(request: Request) -> Response:
    """Draw pictures from an image and a prompt."""
    state = state_of(request)
    state.check_room()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body, read = await _form(state, request)
    else:
        body = parsed(EDIT, await json_body(request))
        read = await _named(state, body)
    context = await asyncio.to_thread(_context, state, body, read)
    return await answered(state, context, body, "image_edit", request)


def _context(state: ServerState, body: EditRequest, read: Callable[[], Pixels]) -> ZImageContext:
    try:
        image = read()
    except RequestError as error:
        raise refused(error, IMAGES) from error
    return context_of_image_request(state.served, body, image=image, resize=bool(given(body).get("resize")))


async def _named(state: ServerState, body: EditRequest) -> Callable[[], Pixels]:
    """The image of a JSON body: a data URL, or an address where the server may fetch those."""
    urls = [body.image] if isinstance(body.image, str) else body.image
    if len(urls) != 1:
        raise bad_request(f"image: one image may be given, got {len(urls)}; leave the others out", "image")
    url, limits = urls[0], state.served.limits
    if is_remote(url):
        url = await fetched(state, "image", url)
    return lambda: image_of_data_url("image", url, limits.input_pixels)


async def _form(state: ServerState, request: Request) -> tuple[EditRequest, Callable[[], Pixels]]:
    """A form's fields, and its one file."""
    try:
        form = await _parser(request, state.served.limits.body_bytes).parse()
    except MultiPartException as error:
        raise bad_request(f"the body is no form: {error.message}") from error
    files = [
        value for name, value in form.multi_items() if isinstance(value, UploadFile) and name in ("image", "image[]")
    ]
    others = {name for name, value in form.multi_items() if isinstance(value, UploadFile)} - {"image", "image[]"}
    if others:
        raise bad_request(
            f"{sorted(others)[0]}: no file is taken under this name; send one as image", sorted(others)[0]
        )
    if len(files) != 1:
        raise bad_request(f"image: one file must be sent under this name, got {len(files)}", "image")
    content = await files[0].read()
    fields: dict[str, Any] = {"image": "a file"}
    for name, value in form.multi_items():
        if isinstance(value, str):
            if name in fields:
                raise bad_request(f"{name}: given twice; leave one out", name)
            fields[name] = _value(name, value)
    try:
        body = EDIT.model_validate(fields)
    except ValidationError as error:
        raise invalid(error) from error
    return body, lambda: decode_image("image", content, state.served.limits.input_pixels)


def _parser(request: Request, body_bytes: int) -> MultiPartParser:
    """Starlette's, which keeps in memory what the server lets in: the folder for files may have been swept."""
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=2, max_fields=_MAX_FIELDS, max_part_size=body_bytes
    )
    parser.spool_max_size = body_bytes
    return parser


def _value(name: str, text: str) -> object:
    """What JSON would have said: a form has text only."""
    if name in TEXTS:
        return text
    if name in LISTS:
        return LISTS[name].read(text)
    if text in ("true", "false"):
        return text == "true"
    if not _NUMBER.fullmatch(text) or len(text) > 40:
        return text
    return float(text) if any(sign in text for sign in ".eE") else int(text)
