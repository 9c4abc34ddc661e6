"""OpenAI's image edits: an image, a prompt and maybe a mask, as a form with files or as JSON with data URLs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response

from max_zimage.errors import RequestError
from max_zimage.images.masks import decode_alpha_mask, decode_mask
from max_zimage.images.read import data_url_bytes, decode_image
from max_zimage.request.request import GenerationRequest
from max_zimage.serving.errors import bad_request
from max_zimage.serving.http.api_names import IMAGES, refused
from max_zimage.serving.http.remote_images import fetched, is_remote
from max_zimage.serving.http.requests import asked_of_image_request
from max_zimage.serving.http.routes_images import answered, described, invalid, json_body, parsed
from max_zimage.serving.http.schema import EDIT, LISTS, TEXTS, EditRequest, given
from max_zimage.serving.http.state import ServerState, state_of

router = APIRouter(prefix="/v1")

_FILES = ("image", "mask", "mask_image")
_MAX_FIELDS = 100
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@router.post("/images/edits", openapi_extra=described(EDIT))
async def edit(request: Request) -> Response:
    """Draw pictures from an image and a prompt."""
    state = state_of(request)
    state.check_room()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body, pictures = await _form(state, request)
    else:
        body = parsed(EDIT, await json_body(request))
        pictures = await _named(state, body)
    asked = await asyncio.to_thread(_asked, state, body, pictures)
    return await answered(state, asked, body, "image_edit", request)


def _asked(state: ServerState, body: EditRequest, pictures: Mapping[str, bytes]) -> GenerationRequest:
    most = state.served.limits.input_pixels
    try:
        image = decode_image("image", pictures["image"], most)
        mask = None
        if "mask_image" in pictures:
            mask = decode_mask("mask_image", pictures["mask_image"], most)
        elif "mask" in pictures:
            mask = decode_alpha_mask("mask", pictures["mask"], most)
    except RequestError as error:
        raise refused(error, IMAGES) from error
    return asked_of_image_request(
        state.served, body, image=image, mask_image=mask, resize=bool(given(body).get("resize"))
    )


async def _named(state: ServerState, body: EditRequest) -> dict[str, bytes]:
    """The pictures of a JSON body: data URLs, or addresses where the server may fetch those."""
    urls = [body.image] if isinstance(body.image, str) else body.image
    if len(urls) != 1:
        raise bad_request(f"image: one image may be given, got {len(urls)}; leave the others out", "image")
    named = {"image": urls[0], "mask": body.mask, "mask_image": body.mask_image}
    given_urls = {name: url for name, url in named.items() if url is not None}
    _check_masks(given_urls)
    remote = {name: await fetched(state, name, url) for name, url in given_urls.items() if is_remote(url)}

    def read() -> dict[str, bytes]:
        return {name: data_url_bytes(name, url) for name, url in (given_urls | remote).items()}

    try:
        return await asyncio.to_thread(read)
    except RequestError as error:
        raise refused(error, IMAGES) from error


async def _form(state: ServerState, request: Request) -> tuple[EditRequest, dict[str, bytes]]:
    """A form's fields, and its files."""
    try:
        form = await _parser(request, state.served.limits.body_bytes).parse()
    except MultiPartException as error:
        raise bad_request(f"the body is no form: {error.message}") from error
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            called = "image" if name == "image[]" else name
            if called not in _FILES:
                raise bad_request(
                    f"{name}: no file is taken under this name; send {', '.join(_FILES[:-1])} or {_FILES[-1]}", name
                )
            if called in files:
                raise bad_request(f"{called}: one file may be sent under this name, got several", called)
            files[called] = value
    if "image" not in files:
        raise bad_request("image: one file must be sent under this name, got 0", "image")
    _check_masks(files)
    fields: dict[str, Any] = dict.fromkeys(files, "a file")
    for name, value in form.multi_items():
        if isinstance(value, str):
            if name in fields:
                raise bad_request(f"{name}: given twice; leave one out", name)
            if name in _FILES:
                raise bad_request(f"{name}: a form has it as a file, got text; send the file", name)
            fields[name] = _value(name, value)
    try:
        body = EDIT.model_validate(fields)
    except ValidationError as error:
        raise invalid(error, EDIT.model_fields) from error
    return body, {name: await file.read() for name, file in files.items()}


def _check_masks(given_pictures: Mapping[str, object]) -> None:
    if "mask" in given_pictures and "mask_image" in given_pictures:
        raise bad_request(
            "mask: what is transparent in it is drawn anew, of mask_image what is white, and both are given; leave one "
            "out",
            "mask",
        )


def _parser(request: Request, body_bytes: int) -> MultiPartParser:
    """Starlette's, which keeps in memory what the server lets in: the folder for files may have been swept."""
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=len(_FILES) + 1, max_fields=_MAX_FIELDS, max_part_size=body_bytes
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
